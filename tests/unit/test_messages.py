"""Control messages, preambles and addresses."""

import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioflow.errors import ConfigError, ProtocolError
from vfioflow.wire import messages
from vfioflow.wire.address import Address, bind
from vfioflow.wire.opening import MAX_ATTEMPT, Preamble, Role

text = st.text(max_size=20)
size = st.integers(0, 2**63 - 1)
devices = st.builds(
    messages.OfferedDevice,
    name=text,
    driver=text,
    profile=text,
    flags=st.integers(0, 7),
    size=st.none() | size,
)
some_message = st.one_of(
    st.builds(
        messages.Hello,
        version=st.integers(0, 99),
        software=text,
        session=text,
        nonce=st.binary(max_size=40),
        key=st.booleans(),
    ),
    st.builds(messages.Proof, proof=st.binary(max_size=40)),
    st.builds(
        messages.Offer,
        devices=st.lists(devices, max_size=3),
        channels=st.integers(0, 64),
        chunk_size=size,
        digests=st.booleans(),
        window=size,
        reconnect_seconds=st.floats(0, 100),
    ),
    st.builds(messages.Accept, load_seconds=st.floats(0, 100)),
    st.builds(messages.Refuse, reasons=st.dictionaries(text, text, max_size=3)),
    st.builds(messages.Ready, splice=st.booleans()),
    st.builds(messages.Probe, size=size),
    st.just(messages.ProbeDone()),
    st.just(messages.SwitchoverAck()),
    st.just(messages.Switchover()),
    st.builds(
        messages.Loaded,
        devices=st.lists(
            st.builds(messages.LoadedDevice, name=text, size=size, digest=st.integers(0, 2**32 - 1))
        ),
        validate_seconds=st.floats(0, 9),
        ready_seconds=st.floats(0, 9),
    ),
    st.just(messages.Commit()),
    st.builds(
        messages.Running, resume_seconds=st.floats(0, 9), start_vcpus_seconds=st.floats(0, 9)
    ),
    st.just(messages.Goodbye()),
    st.builds(messages.Failed, reason=text, cancelled=st.booleans()),
)


@given(some_message)
def test_every_message_survives_the_wire(message):
    assert messages.decode(messages.encode(message)) == message


@given(st.binary(max_size=200))
def test_anything_else_is_a_decode_error(data):
    try:
        message = messages.decode(data)
    except msgspec.DecodeError:
        return
    assert messages.decode(messages.encode(message)) == message


@pytest.mark.parametrize(
    "data",
    [
        msgspec.msgpack.encode({"type": "commit", "extra": 1}),
        msgspec.msgpack.encode({"type": "no-such"}),
        msgspec.msgpack.encode({"type": "probe"}),
        msgspec.msgpack.encode({"type": "probe", "size": "much"}),
        msgspec.msgpack.encode(["commit"]),
    ],
)
def test_wrong_messages_are_refused(data):
    with pytest.raises(msgspec.DecodeError):
        messages.decode(data)


@given(
    st.builds(
        Preamble,
        st.sampled_from(Role),
        st.integers(0, 2**32 - 1),
        st.binary(min_size=16, max_size=16),
        st.integers(0, MAX_ATTEMPT),
    )
)
def test_preamble_round_trip(preamble):
    data = preamble.pack()
    assert len(data) == 32
    assert data[:8] == b"VFIOFLOW"
    assert Preamble.unpack(data) == preamble


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"[:32], "wrong magic"),
        (bytes(32), "wrong magic"),
        (b"VFIOFLOW" + b"\x63\x00\x01" + bytes(21), "speaks version 99"),
        (b"VFIOFLOW" + b"\x02\x00\x00" + bytes(21), "unknown purpose"),
        (b"VFIOFLOW" + b"\x02\x00\x07" + bytes(21), "unknown purpose"),
    ],
)
def test_other_preambles_are_named(data, what):
    with pytest.raises(ProtocolError, match=what):
        Preamble.unpack(data)


@pytest.mark.parametrize(
    ("given_text", "host", "port"),
    [
        ("tcp://127.0.0.1:4747", "127.0.0.1", 4747),
        ("tcp://host.example:0", "host.example", 0),
        ("tcp://[::1]:99", "::1", 99),
    ],
)
def test_addresses(given_text, host, port):
    address = Address.parse(given_text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == given_text


@pytest.mark.parametrize(
    "wrong",
    ["", "host:1", "tcp://host", "tcp://:1", "udp://host:1", "tcp://host:99999", "tcp://host:x"],
)
def test_wrong_addresses_are_config_errors(wrong):
    with pytest.raises(ConfigError, match="is not an address"):
        Address.parse(wrong)


def test_binding_says_what_is_wrong():
    with bind("tcp://127.0.0.1:0") as first:
        taken = str(Address.of(first))
        with pytest.raises(ConfigError, match=f"cannot listen on {taken}: Address already in use"):
            bind(taken)
    for wrong in ("fd://x", "fd://9999"):
        with pytest.raises(ConfigError, match="not an inherited socket"):
            bind(wrong)


@pytest.mark.parametrize("count", [messages.MAX_DEVICES + 1, 1_000_000, 2**32 - 1])
def test_an_offer_of_too_many_devices_takes_no_memory(count):
    """The number stands before the devices, which need not be there."""
    head = b"\x86\xa4type\xa5offer\xa7devices\xdd" + count.to_bytes(4, "big")
    tracemalloc.start()
    with pytest.raises(msgspec.DecodeError):
        messages.decode(head + bytes(1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("kind", [b"\xa6loaded\xa7devices", b"\xa6refuse\xa7reasons"], ids=str)
def test_a_message_that_claims_to_be_large_takes_no_memory(kind):
    for length in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        tracemalloc.start()
        with pytest.raises(msgspec.DecodeError):
            messages.decode(b"\x82\xa4type" + kind + length)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100_000
