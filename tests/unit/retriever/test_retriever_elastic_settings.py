"""TUNETRIAL_ELASTICSEARCH_*: what goes to the client, what contradicts itself, where credentials come from."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.retriever.elastic_settings import ElasticsearchSettings


def test_without_an_address_indexes_stay_here() -> None:
    assert not ElasticsearchSettings().wanted
    assert ElasticsearchSettings(urls="http://a:9200").wanted
    assert ElasticsearchSettings(cloud_id="x:eA==").wanted


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNETRIAL_ELASTICSEARCH_URLS", "https://a:9200, https://b:9200")
    monkeypatch.setenv("TUNETRIAL_ELASTICSEARCH_TIMEOUT_S", "7")
    options = ElasticsearchSettings().client_options()
    assert options["hosts"] == ["https://a:9200", "https://b:9200"]
    assert options["request_timeout"] == 7
    assert options["retry_on_timeout"] is False
    assert options["sniff_on_start"] is options["sniff_on_node_failure"] is False


def test_credentials_are_read_from_files_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("c2VjcmV0\n")
    (tmp_path / "password").write_text("hunter2\n")
    key = ElasticsearchSettings(urls="http://a:9200", api_key_file=tmp_path / "key")
    assert key.client_options()["api_key"] == "c2VjcmV0"
    basic = ElasticsearchSettings(urls="http://a:9200", user="u", password_file=tmp_path / "password")
    assert basic.client_options()["basic_auth"] == ("u", "hunter2")
    assert "hunter2" not in repr(ElasticsearchSettings(urls="http://a:9200", user="u", password="hunter2"))


def test_an_empty_credential_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" \n")
    with pytest.raises(ValueError, match="key is empty"):
        ElasticsearchSettings(urls="http://a:9200", api_key_file=tmp_path / "key").client_options()


def test_tls_by_ca_by_fingerprint_and_with_a_client_certificate() -> None:
    https = "https://a:9200"
    assert ElasticsearchSettings(urls=https, ca_file=Path("ca.pem")).client_options()["ca_certs"] == "ca.pem"
    by_fingerprint = ElasticsearchSettings(urls=https, fingerprint=":".join(["ab"] * 32))
    assert not {"ca_certs", "verify_certs"} & by_fingerprint.client_options().keys()
    options = ElasticsearchSettings(urls=https, client_certificate=Path("c.pem"), client_key=Path("k.pem")).client_options()
    assert (options["client_cert"], options["client_key"]) == ("c.pem", "k.pem")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"urls": "http://a:9200", "cloud_id": "x"}, "URLS or TUNETRIAL_ELASTICSEARCH_CLOUD_ID"),
        ({"api_key": "a", "user": "u", "password": "p"}, "set one of"),
        ({"user": "u"}, "goes with TUNETRIAL_ELASTICSEARCH_PASSWORD"),
        ({"password": "p"}, "goes with TUNETRIAL_ELASTICSEARCH_PASSWORD"),
        ({"user": "u", "password": "p", "password_file": "f"}, "PASSWORD_FILE, not both"),
        ({"ca_file": "a", "fingerprint": "ab" * 32}, "FINGERPRINT, not both"),
        ({"urls": "https://a:9200, http://b:9200", "fingerprint": "ab" * 32}, "https://"),
        ({"cloud_id": "x:eA==", "fingerprint": "ab" * 32}, "goes with TUNETRIAL_ELASTICSEARCH_URLS"),
        ({"fingerprint": "ab:cd"}, "fingerprint"),
        ({"urls": "localhost:9200"}, "such as https://es-0:9200"),
        ({"urls": "https://a:9200,https://b"}, "such as https://es-0:9200"),
        ({"client_key": "k"}, "CLIENT_CERTIFICATE"),
        ({"vector_index": "ivf"}, "vector_index"),
        ({"prefix": "Upper"}, "prefix"),
        ({"shards": 0}, "shards"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ElasticsearchSettings(**settings)  # type: ignore[arg-type]


def test_an_error_about_settings_shows_no_secret() -> None:
    with pytest.raises(ValidationError) as caught:
        ElasticsearchSettings(urls="http://a:9200", api_key="c2VjcmV0", user="u", password="hunter2")
    assert "set one of" in str(caught.value)
    assert not [secret for secret in ("c2VjcmV0", "hunter2") if secret in str(caught.value)]
