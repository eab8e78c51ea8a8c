"""Pages and their opaque tokens. Knows not what is listed."""

from __future__ import annotations

import base64

from services.common.errors import InvalidArgument

MAX_PAGE = 1000
DEFAULT_PAGE = 100


def page_size(asked: int | None) -> int:
    """Rows of a page. Raises InvalidArgument SETTING_OUT_OF_RANGE."""
    if asked is None:
        return DEFAULT_PAGE
    if not 1 <= asked <= MAX_PAGE:
        raise InvalidArgument("SETTING_OUT_OF_RANGE", "page_size must be 1 to 1000, not {size}", size=asked, field="page_size")
    return asked


def page_token(listing: str, number: int) -> str:
    """An opaque token for the rows below `number` of `listing` (what is listed, with its filter)."""
    return base64.urlsafe_b64encode(f"{number} {listing}".encode()).decode()


def page_start(listing: str, token: str) -> int | None:
    """The number in a token; None for the first page. Raises InvalidArgument PAGE_TOKEN_INVALID, also for a token of another listing."""
    if not token:
        return None
    try:
        number, _, of = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode().partition(" ")
        if of == listing:
            return int(number)
    except ValueError:
        pass  # not base64, not text or not a number: the error below says it all
    raise InvalidArgument("PAGE_TOKEN_INVALID", "page_token is not one of this listing: start without it", field="page_token")
