"""Amazon SageMaker: signatures against botocore's own client and against AWS's published rule; frames read back.

Frames are written here by the rule of https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html
(prelude, headers, payload, two CRCs), which botocore's decoder checks; their kinds are those of botocore's model of
sagemaker-runtime. What the containers say inside is recorded in test_servers_replies. No network.
"""

import hashlib
import hmac
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("botocore", reason="the extra `sagemaker` signs and decodes with it")

from karakuri_integrations.conversation import Usage
from karakuri_integrations.engines import sagemaker
from karakuri_integrations.engines.sagemaker import EventStream, sign
from karakuri_integrations.engines.servers import SERVERS, error_of
from karakuri_integrations.engines.sse import EventTooLargeError
from karakuri_integrations.errors import MissingDependencyError, OptionError

URL = "https://runtime.sagemaker.ap-northeast-1.amazonaws.com/endpoints/karakuri/invocations-response-stream"
BODY = '{"inputs": "[INST] はい"}'.encode()
KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    """An account of the environment's, and no other source of credentials."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ROLE_ARN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    sagemaker._session.cache_clear()
    yield
    sagemaker._session.cache_clear()


# --- signatures -----------------------------------------------------------------------------------------------------


def expected_signature(url: str, headers: dict[str, str], body: bytes) -> str:
    """AWS Signature Version 4 by its published rule, from the headers that say they are signed."""
    sent = {name.lower(): value for name, value in headers.items()}
    scope, signed = _parts(sent["authorization"])
    date, region, service, _ = scope.split("/")
    host, _, path = url.removeprefix("https://").partition("/")
    lines = "".join(f"{name}:{' '.join({**sent, 'host': host}[name].split())}\n" for name in signed.split(";"))
    request = "\n".join(("POST", f"/{path}", "", lines, signed, hashlib.sha256(body).hexdigest()))
    text = "\n".join(("AWS4-HMAC-SHA256", sent["x-amz-date"], scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{SECRET}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _parts(authorization: str) -> tuple[str, str]:
    fields = dict(one.split("=", 1) for one in authorization.removeprefix("AWS4-HMAC-SHA256 ").split(", "))
    return fields["Credential"].removeprefix(f"{KEY}/"), fields["SignedHeaders"]


def signature_in(headers: dict[str, str]) -> str:
    return headers["Authorization"].rpartition("Signature=")[2]


def test_the_signature_follows_the_published_rule(account: None) -> None:
    headers = sign("POST", URL, {"Content-Type": "application/json", "X-Amzn-SageMaker-Inference-Component": "k"}, BODY)
    scope, signed = _parts(headers["Authorization"])
    assert scope.split("/")[1:] == ["ap-northeast-1", "sagemaker", "aws4_request"]
    assert signed == "content-type;host;x-amz-date;x-amzn-sagemaker-inference-component"
    assert signature_in(headers) == expected_signature(URL, headers, BODY)


def test_the_request_is_the_one_that_botocores_client_sends(account: None) -> None:
    botocore = pytest.importorskip("botocore.session")
    sent: list[Any] = []

    class StoppedError(Exception):
        pass

    def keep(request: Any, **_: Any) -> None:
        sent.append(request)
        raise StoppedError

    client = botocore.get_session().create_client("sagemaker-runtime", region_name="ap-northeast-1")
    client.meta.events.register("before-send", keep)
    with pytest.raises(StoppedError):
        client.invoke_endpoint_with_response_stream(EndpointName="karakuri", Body=BODY, ContentType="application/json")
    theirs = {name: value.decode() if isinstance(value, bytes) else value for name, value in sent[0].headers.items()}
    assert (sent[0].method, sent[0].url, sent[0].body) == ("POST", URL, BODY)
    assert signature_in(theirs) == expected_signature(URL, theirs, BODY)
    own = sign("POST", URL, {"Content-Type": "application/json"}, BODY)
    assert _parts(own["Authorization"])[0].split("/")[1:] == _parts(theirs["Authorization"])[0].split("/")[1:]
    assert set(_parts(own["Authorization"])[1].split(";")) <= set(_parts(theirs["Authorization"])[1].split(";"))
    assert SERVERS["sagemaker"].route == "/invocations-response-stream"


def test_what_is_not_awss_is_sent_unsigned(account: None) -> None:
    headers = sign("POST", URL, {"X-Request-Id": "r", "User-Agent": "k", "Authorization": "Bearer old"}, BODY)
    assert (headers["X-Request-Id"], headers["User-Agent"]) == ("r", "k")
    assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 ")
    assert [name for name in headers if name.lower() == "authorization"] == ["Authorization"]
    assert _parts(headers["Authorization"])[1] == "host;x-amz-date"


def test_a_session_token_is_sent_and_signed(account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    headers = sign("POST", URL, {}, BODY)
    assert headers["X-Amz-Security-Token"] == "token"
    assert "x-amz-security-token" in _parts(headers["Authorization"])[1]
    assert signature_in(headers) == expected_signature(URL, headers, BODY)


def test_another_body_has_another_signature(account: None) -> None:
    assert signature_in(sign("POST", URL, {}, BODY)) != signature_in(sign("POST", URL, {}, BODY + b" "))


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("runtime.sagemaker.us-east-1.amazonaws.com", "us-east-1"),
        ("runtime.sagemaker.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("runtime-fips.sagemaker.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("vpce-0ab-1cd.runtime.sagemaker.eu-west-1.vpce.amazonaws.com", "eu-west-1"),
    ],
)
def test_the_region_stands_in_the_address(account: None, host: str, region: str) -> None:
    headers = sign("POST", f"https://{host}/endpoints/k/invocations-response-stream", {}, BODY)
    assert _parts(headers["Authorization"])[0].split("/")[1] == region


def test_behind_another_host_the_region_is_the_environments(account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-northeast-3")
    headers = sign("POST", "https://proxy.example/endpoints/k", {}, BODY)
    assert _parts(headers["Authorization"])[0].split("/")[1] == "ap-northeast-3"


def test_no_region_is_our_error(account: None) -> None:
    with pytest.raises(OptionError, match="AWS_DEFAULT_REGION"):
        sign("POST", "https://proxy.example/endpoints/k", {}, BODY)


def test_no_credentials_is_our_error(account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(OptionError, match="AWS_ACCESS_KEY_ID") as caught:
        sign("POST", URL, {}, BODY)
    assert SECRET not in str(caught.value)


def test_a_profile_that_is_not_there_is_our_error(account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(OptionError, match="AWS_PROFILE"):
        sign("POST", URL, {}, BODY)


def test_without_botocore_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("botocore", "botocore.auth", "botocore.eventstream", "botocore.session"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"karakuri-integrations\[sagemaker\]"):
        EventStream()
    with pytest.raises(MissingDependencyError, match=r"karakuri-integrations\[sagemaker\]"):
        sign("POST", URL, {}, BODY)


# --- frames ---------------------------------------------------------------------------------------------------------


def frame(payload: bytes, **headers: str) -> bytes:
    """One message of application/vnd.amazon.eventstream; header names are written with _ for -."""
    written = b""
    for name, value in headers.items():
        label = f":{name.replace('_', '-')}".encode()
        written += bytes([len(label)]) + label + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    prelude = struct.pack(">II", 16 + len(written) + len(payload), len(written))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + written + payload
    return message + struct.pack(">I", zlib.crc32(message))


def part(payload: bytes) -> bytes:
    return frame(payload, event_type="PayloadPart", content_type="application/octet-stream", message_type="event")


TGI = [
    'data:{"index":1,"token":{"id":9,"text":" 富士","logprob":-0.1,"special":false},"generated_text":null,"details":null}\n\n',
    'data:{"index":2,"token":{"id":9,"text":"山","logprob":-0.1,"special":false},"generated_text":" 富士山",'
    '"details":{"finish_reason":"length","generated_tokens":2,"seed":null,"input_length":61}}\n\n',
]
DJL = [
    '{"token": {"id": 9, "text": " 富士", "log_prob": -0.1}}\n',
    '{"token": {"id": 9, "text": "山", "log_prob": -0.1}, "generated_text": " 富士山", "details": '
    '{"finish_reason": "length", "generated_tokens": 2, "inputs": "..."}}\n',
]


def text_of(chunks: list[bytes]) -> tuple[str, list[str | None], list[Usage | None]]:
    decoder, read = EventStream(), SERVERS["sagemaker"].read
    raws = [raw for chunk in chunks for raw in decoder.push(chunk)] + decoder.end()
    found = [read(name, json.loads(data)) for name, data in raws]
    return "".join(one.text for one in found), [one.finish_reason for one in found], [one.usage for one in found]


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
@pytest.mark.parametrize("lines", [TGI, DJL], ids=["TGI", "DJL"])
def test_both_containers_at_every_chunk_size(lines: list[str], size: int) -> None:
    wire = b"".join(part(line.encode()) for line in lines)
    text, reasons, usages = text_of([wire[at : at + size] for at in range(0, len(wire), size)])
    assert (text, reasons) == (" 富士山", [None, "length"])
    assert usages[-1] == (Usage(61, 2) if lines is TGI else None)


@pytest.mark.parametrize("lines", [TGI, DJL], ids=["TGI", "DJL"])
@pytest.mark.parametrize("cut", [1, 40, 41, 42, 43])
def test_a_part_may_end_anywhere_in_an_event(lines: list[str], cut: int) -> None:
    """botocore's notes on the stream: it is not guaranteed that a part holds a whole object."""
    whole = "".join(lines).encode()
    wire = part(whole[:cut]) + part(b"") + part(whole[cut:])
    assert text_of([wire])[0] == " 富士山"


def test_the_last_line_may_lack_its_end() -> None:
    assert text_of([part("".join(DJL).rstrip("\n").encode())])[1] == [None, "length"]


@pytest.mark.parametrize("blank", [b"", b"\n", b": ping\n\n"])
def test_what_comes_before_the_first_event(blank: bytes) -> None:
    assert text_of([part(blank) + part("".join(TGI).encode())])[0] == " 富士山"


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (
            frame(
                b'{"Message":"Your model primary sent a bad response","ErrorCode":"ModelInvocationTimeExceeded"}',
                exception_type="ModelStreamError",
                content_type="application/json",
                message_type="exception",
            ),
            ("Your model primary sent a bad response", "ModelStreamError"),
        ),
        (
            frame(b"{}", exception_type="InternalStreamFailure", message_type="exception"),
            ("InternalStreamFailure", "InternalStreamFailure"),
        ),
        (
            frame(b"no JSON", exception_type="InternalStreamFailure", message_type="exception"),
            ("no JSON", "InternalStreamFailure"),
        ),
        (
            frame(b"", error_code="InternalError", error_message="An error", message_type="error"),
            ("An error", "InternalError"),
        ),
    ],
)
def test_awss_own_errors(wire: bytes, expected: tuple[str, str]) -> None:
    decoder = EventStream()
    found = decoder.push(part(TGI[0].encode()) + wire)
    assert [name for name, _ in found] == ["", "error"]
    assert error_of(json.loads(found[-1][1])) == expected


def test_the_containers_error_in_the_stream() -> None:
    """TGI answers 200 before it has looked at the request."""
    found = EventStream().push(part(b'data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n'))
    assert error_of(json.loads(found[0][1])) == ("Model is overloaded", "overloaded")


@pytest.mark.parametrize(
    "wire",
    [
        b"data: no frames here, but a proxy's text\n\n",
        part(TGI[0].encode())[:-1] + b"\x00",  # a wrong checksum
        b"\x00" * 64,
        b"<html>" * 20,
    ],
)
def test_bytes_that_are_no_event_stream_are_an_event_that_is_no_json(wire: bytes) -> None:
    found = EventStream().push(wire)
    assert len(found) == 1
    with pytest.raises(ValueError):
        json.loads(found[0][1])


def test_a_frame_that_is_cut_gives_nothing() -> None:
    decoder = EventStream()
    assert decoder.push(part(TGI[0].encode())[:-3]) == []
    assert decoder.end() == []


def test_other_events_are_passed_over() -> None:
    assert EventStream().push(frame(b"{}", event_type="initial-response", message_type="event")) == []


def test_an_event_has_a_limit() -> None:
    decoder = EventStream(limit=1000)
    with pytest.raises(EventTooLargeError):
        for _ in range(3):
            decoder.push(part(b"data:" + b"x" * 600))
