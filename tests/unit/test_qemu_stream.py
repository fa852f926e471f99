"""QEMU migration streams: everything in them is found, and nothing is made up."""

import io
import json

import pytest
import qemu_streams as q
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from vfioflow.cli import cli
from vfioflow.errors import StreamError
from vfioflow.qemu_stream import Command, Ram, Vfio, read_stream


def read(data, piece=1 << 20):
    file = io.BytesIO(data)
    return read_stream(lambda size: file.read(min(size, piece)))


def device(stream, name):
    (found,) = [section for section in stream.sections if section.name == name]
    return found


def test_a_whole_stream():
    data = q.whole()
    stream = read(data)
    assert (stream.machine, stream.capabilities) == ("pc-q35-10.1", ["multifd"])
    assert (stream.bytes, stream.complete, stream.notes) == (len(data), True, [])
    assert [(s.name, s.kind, s.pieces, s.sized) for s in stream.sections] == [
        ("ram", "ram", 3, "parsed"),
        (q.VFIO, "vfio", 5, "footer"),
        ("timer", "device", 1, "footer"),
    ]
    assert device(stream, "ram").ram == Ram(
        blocks={"ram": 1 << 20}, pages=2, page_bytes=8192, zero_pages=2
    )
    assert device(stream, q.VFIO).vfio == Vfio(
        setup=True,
        data_blocks=4,
        precopy_bytes=1500,
        stopcopy_bytes=2002,
        config_bytes=40,
        initial_data_sent=True,
    )
    assert device(stream, q.VFIO).vfio.device_bytes == 3542
    assert (device(stream, "timer").bytes, device(stream, "timer").described) == (24, 24)
    assert stream.commands == [
        Command(name="OPEN_RETURN_PATH", count=1, bytes=0),
        Command(name="PING", count=1, bytes=4),
    ]
    assert stream.around + sum(s.bytes for s in stream.sections) == len(data)


@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 40))
def test_whatever_a_device_says_its_size_is_right(config, timer, piece):
    stream = read(q.whole(config, timer), piece)
    assert stream.notes == []
    assert device(stream, "timer").bytes == len(timer)
    assert device(stream, q.VFIO).vfio.config_bytes == len(config)


@given(st.integers(0, len(q.whole())))
def test_a_stream_cut_anywhere_says_where_and_gives_what_came_before(at):
    data = q.whole()
    end = data.index(b"\0" + q.description()[:1], 12000) + 1
    if at in (end, len(data)):
        assert read(data[:at]).complete
        return
    with pytest.raises(StreamError) as caught:
        read(data[:at])
    assert caught.value.offset <= at
    assert caught.value.found.complete == (at > end)


@given(st.binary(max_size=300))
def test_garbage_is_no_stream(data):
    with pytest.raises(StreamError):
        read(data)


@given(st.binary(max_size=200), st.sampled_from([b"", q.header()]))
def test_garbage_behind_a_good_beginning(data, head):
    try:
        stream, said = read(head + data), ""
    except StreamError as error:
        stream, said = error.found, str(error)
    assert said.isprintable()
    assert stream.bytes <= len(head + data)


def stream_of(*pieces):
    return read(q.header() + b"".join(pieces) + q.EOF)


def test_a_footer_within_a_device_is_told_from_its_own():
    fake = b"x\x7e" + q.u32(3) + b"not the end"
    stream = stream_of(q.section(q.FULL, 3, fake, "nic"), q.section(q.FULL, 4, b"", "next"))
    assert [(s.name, s.bytes) for s in stream.sections] == [("nic", len(fake)), ("next", 0)]


def test_a_footer_that_deceives_is_found_out_by_the_description():
    inner = q.section(q.FULL, 3, b"abc", "nic")  # a device whose state looks like a device
    data = q.header() + inner + b"\x04" + q.u32(9) + q.text("fake") + bytes(8) + b"\x7e" + q.u32(9)
    stream = read(data + q.EOF + q.description(("nic", 0, 40)))
    assert stream.notes == [
        "nic (0) has 3 bytes up to what seems to be its footer, and 40 by its description",
        "fake (0) is not described: its size is where its footer seems to be",
    ]


def test_without_a_description_sizes_are_not_certain():
    stream = stream_of(q.section(q.FULL, 3, b"abc", "nic"))
    assert stream.description_bytes is None
    assert stream.notes == [
        "the sizes of 1 sections are where their footers seem to be: there is no description of them"
    ]


def test_a_description_that_is_none():
    stream = read(q.header() + q.EOF + b"\x06" + q.u32(2) + b"{]")
    assert stream.notes == ["the description at the end is not as QEMU writes it"]


def test_the_description_counts_arrays_and_subsections():
    fields = [{"name": "a", "size": 4, "array_len": 3}, {"name": "b", "size": 2}]
    sub = {"vmsd_name": "nic/sub", "version": 1, "fields": [{"name": "c", "size": 5}]}
    about = {"name": "nic", "instance_id": 0, "fields": fields, "subsections": [sub]}
    text = json.dumps({"devices": [about]}).encode()
    contents = bytes(14) + b"\x05" + q.text("nic/sub") + q.u32(1) + bytes(5)
    data = q.header() + q.section(q.FULL, 3, contents, "nic") + q.EOF
    stream = read(data + b"\x06" + q.u32(len(text)) + text)
    assert (stream.notes, stream.sections[0].described) == ([], len(contents))


def test_every_kind_of_page():
    contents = [
        q.blocks(a=8192, b=4096),
        q.page(0, block="a"),
        q.zeros(1),
        q.u64(q.DIFFERENCE) + q.text("b") + b"\1" + q.u16(3) + b"xyz",
        q.u64(q.COMPRESSED | q.SAME_BLOCK) + q.u32(70000) + bytes(70000),
        q.u64(q.FLUSH),
        q.u64(q.END),
    ]
    stream = stream_of(q.section(q.START, 1, b"".join(contents), "ram", version=4))
    assert stream.sections[0].ram == Ram(
        blocks={"a": 8192, "b": 4096},
        pages=1,
        page_bytes=4096,
        zero_pages=1,
        packed_pages=2,
        packed_bytes=70003,
    )


def test_pages_of_another_size_and_blocks_with_addresses():
    bits = b"\x05" + q.text("configuration/target-page-bits") + q.u32(1) + q.u32(14)
    uuid = b"\x05" + q.text("configuration/uuid") + q.u32(1) + bytes(16)
    head = q.header("virt", ["x-ignore-shared"], bits, uuid)
    sizes = q.u64(16384 | q.SIZES) + q.text("m") + q.u64(16384) + q.u64(0x40000000)
    contents = sizes + q.page(0, block="m", size=16384) + q.u64(q.END)
    stream = read(head + q.section(q.START, 1, contents, "ram", version=4) + q.EOF)
    assert stream.page_size == 16384
    assert stream.sections[0].ram.page_bytes == 16384


def test_a_device_whose_data_went_by_multifd():
    stream = stream_of(
        q.section(q.START, 7, q.u64(q.SETUP) + q.u64(q.VFIO_END), "vfio"),
        q.section(q.LAST, 7, q.u64(q.VFIO_END)),
        q.section(q.FULL, 7, q.u64(q.LOAD_READY), "vfio"),
    )
    assert stream.sections[0].vfio == Vfio(setup=True, config_load_ready=True)
    assert stream.notes == []


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b"\x09"], "unknown type 0x09"),
        ([q.section(q.PART, 5, b"")], "section 5, which has not begun"),
        ([q.section(q.START, 1, b"", "ram", version=3)], "unknown version 3"),
        ([q.section(q.START, 1, q.u64(1), "ram", version=4)], "unknown flags 0x1"),
        ([q.section(q.START, 1, q.u64(q.HOOK), "ram", version=4)], "by RDMA"),
        (
            [q.section(q.START, 1, q.blocks(a=4096)[:-8] + q.u64(8192), "ram", version=4)],
            "block 'a' of 8192",
        ),
        (
            [q.section(q.START, 1, q.blocks(a=4096) + q.page(0, block="b"), "ram", version=4)],
            "block 'b' that there is not",
        ),
        ([q.section(q.START, 7, q.u64(1), "vfio")], "unknown flag 0x1"),
        ([q.section(q.START, 7, q.u64(q.VFIO_END), "vfio")[:-5], q.EOF * 9], "its footer"),
        (
            [
                q.section(q.START, 7, q.u64(q.VFIO_END), "vfio"),
                q.section(q.FULL, 7, b"", "a"),
            ],
            "section 7 is vfio, and then a",
        ),
        ([q.command(12)], "unknown command 12"),
    ],
)
def test_what_is_wrong_is_named(pieces, words):
    with pytest.raises(StreamError, match=words):
        stream_of(*pieces)


def test_a_file_of_mapped_memory_is_refused():
    with pytest.raises(StreamError, match="mapped-ram"):
        read(q.header("pc", ["mapped-ram"]))


def test_little_is_held_at_a_time():
    """Of gigabytes of VFIO data; and of a device that has no end."""
    sizes = []

    def endless(size):
        sizes.append(size)
        if len(sizes) == 1:
            head = q.section(q.START, 7, q.u64(q.DATA) + q.u64(1 << 40), "vfio")[:-5]
            return q.header() + head
        return b"" if len(sizes) > 3000 else bytes(size)

    with pytest.raises(StreamError) as caught:
        read_stream(endless)
    assert max(sizes) <= 1 << 20
    assert caught.value.found.sections[0].bytes > 2900 << 20


# ---------------------------------------------------------------------- the command


def invoke(*words, stdin=b""):
    return CliRunner().invoke(cli, ["inspect", *words], input=stdin)


def test_the_command_shows_what_is_device_state(tmp_path):
    (tmp_path / "stream").write_bytes(q.whole())
    shown = invoke(str(tmp_path / "stream"))
    assert shown.exit_code == 0
    words = " ".join(shown.stdout.split())
    assert "pc-q35-10.1 12.2 KiB; it also said open return path, ping" in words
    assert "guest memory 8.1 KiB 66.3%" in words
    assert "VFIO devices (1) 3.6 KiB 29.3%" in words
    assert "0000:00:05.0/vfio 5 3.6 KiB setup, pre-copy 1.5 KiB, stop-copy 2.0 KiB" in words


def test_the_command_reads_standard_input_and_prints_json():
    found = json.loads(invoke("-", "--json", stdin=q.whole()).stdout)
    assert found["totals"] == {"ram": 8286, "vfio": 3662, "device": 24, "around": 522}
    assert (found["complete"], found["error"]) == (True, None)


def test_the_command_shows_what_it_read_of_a_stream_that_is_cut_short():
    result = invoke("-", stdin=q.whole()[:3000])
    assert result.exit_code == 2
    assert "cut short" in result.stdout
    assert "error: at byte 3000: the stream ends in the middle of a page" in result.stderr
    found = json.loads(invoke("-", "--json", stdin=q.whole()[:3000]).stdout)
    assert found["error"] == "at byte 3000: the stream ends in the middle of a page"


def test_the_command_on_what_is_no_stream(tmp_path):
    result = invoke("-", stdin=b"hello there")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "this is no QEMU migration stream" in result.stderr
    for path in (tmp_path, tmp_path / "nowhere"):
        assert invoke(str(path)).exit_code == 2
