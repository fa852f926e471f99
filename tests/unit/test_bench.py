"""The comparison in bench/: its arithmetic, and that it cleans up.  Nothing here looks at a clock."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from comparison import commandline, reference, wires
from comparison.content import KINDS, Content
from comparison.ends import DEVNULL, MEMFD, PIPE, Ends
from comparison.movers import Moved, Piped, build_loop, loops, peers
from comparison.programs import ProgramFailed, Programs
from comparison.reference import Ratio
from comparison.rounds import Cell, interleave, order
from comparison.stage import Stage
from comparison.summary import GIB, Run, best, summarize

BENCH = Path(__file__).parents[2] / "bench"
NULL = subprocess.DEVNULL


def run(mover, number, rate, cpu=1.0, wire=GIB):
    return Run(mover, number, GIB, 1 / rate, cpu, wire)


class Fake:
    """A mover that does not move."""

    def __init__(self, name, why_not=None, fails=False):
        self.name, self._why_not, self.fails = name, why_not, fails

    def missing(self):
        return self._why_not

    def suits(self, ends):
        return True

    def move(self, ends, wire):
        return Moved(1.0, 1.0, 1)


def test_a_ratio_is_taken_within_its_round():
    # The machine is four times as fast in the second round; what counts is that b has half of a.
    runs = [run("a", 0, 1.0), run("b", 0, 0.5), run("a", 1, 4.0), run("b", 1, 2.0)]
    a, b = summarize(runs, "a")
    assert (a.ratio, a.spread, a.rate) == (1.0, 0.0, 2.5)
    assert (b.ratio, b.spread, b.rate) == (0.5, 0.0, 1.25)


def test_medians_and_spread():
    runs = [run("a", i, 1.0, cpu=2.0) for i in range(3)]
    runs += [run("b", i, rate, cpu=1.0, wire=GIB // 2) for i, rate in enumerate((0.5, 0.7, 0.8))]
    _, b = summarize(runs, "a")
    assert b.ratio == pytest.approx(0.7)
    assert b.spread == pytest.approx(0.15)
    assert (b.cpu, b.cpu_ratio, b.wire, b.runs) == (1.0, 0.5, 0.5, 3)


def test_a_round_without_the_yardstick_has_no_ratio():
    rows = summarize([run("a", 0, 1.0), run("b", 0, 0.5), run("b", 1, 9.0), run("c", 1, 1.0)], "a")
    assert [(row.mover, row.ratio) for row in rows] == [("a", 1.0), ("b", 0.5)]


def test_the_yardstick_has_the_best_median():
    runs = [run("a", i, rate) for i, rate in enumerate((1.0, 1.0, 9.0))]
    runs += [run("b", i, 2.0) for i in range(3)]
    assert best(runs, ["a", "b", "never ran"]) == "b"
    assert best(runs, ["never ran"]) is None


def test_everyone_is_first_once():
    orders = [order(3, number) for number in range(3)]
    assert [o[0] for o in orders] == [0, 1, 2]
    assert all(sorted(o) == [0, 1, 2] for o in orders)


def test_rounds_are_interleaved_and_rotated():
    cell, said = Cell({"wire": "w"}, ("a",)), []

    def measure(mover, number):
        if mover.fails:
            raise ProgramFailed("broke")
        return run(mover.name, number, 1.0)

    movers = [Fake("a"), Fake("b"), Fake("c", why_not="c not installed"), Fake("d", fails=True)]
    interleave(cell, movers, 2, measure, said.append)
    assert [(r.mover, r.round) for r in cell.runs] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert cell.failures == {"c": "c not installed", "d": "failed: broke"}
    interleave(cell, movers[:1], 1, measure, said.append)
    assert cell.runs[-1].round == 2
    assert cell.yardstick == "a"
    assert json.dumps(cell.as_json())


def test_noise_is_no_regression_and_a_regression_is():
    stored = {"steady": Ratio(1.0, 0.01), "noisy": Ratio(1.0, 0.3), "wild": Ratio(1.0, 5.0)}
    now = {"steady": Ratio(0.85, 0.0), "noisy": Ratio(0.75, 0.0), "wild": Ratio(0.6, 0.0)}
    verdicts = {v.name: v for v in reference.compare({**now, "new": Ratio(0.1, 0)}, stored)}
    assert [name for name, v in verdicts.items() if v.slower] == ["steady", "wild"]
    assert verdicts["new"].reference is None
    assert reference.compare({"steady": Ratio(0.91, 0.0)}, stored)[0].slower is False


def test_a_reference_is_what_was_stored(tmp_path):
    path = tmp_path / "reference.json"
    assert reference.load(path) == ({}, {})
    reference.store(path, {"a": Ratio(0.98765, 0.01)}, {"cores": 2})
    assert reference.load(path) == ({"a": Ratio(0.988, 0.01)}, {"cores": 2})


def test_of_two_measurements_the_better_counts():
    one = {"a": Ratio(1.0, 0), "b": Ratio(1.0, 0)}
    other = {"a": Ratio(2.0, 0), "c": Ratio(3.0, 0)}
    assert reference.better(one, other) == {
        "a": Ratio(2.0, 0), "b": Ratio(1.0, 0), "c": Ratio(3.0, 0),
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_content_is_the_same_each_time(kind):
    with Content(kind, 1 << 20, 2) as one, Content(kind, 1 << 20, 2) as other:
        for mine, yours in zip(one.files, other.files, strict=True):
            assert os.pread(mine, 1 << 20, 0) == os.pread(yours, 1 << 20, 0)
            assert os.fstat(mine).st_size == 1 << 19


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    return build_loop(tmp_path_factory.mktemp("loop"))


@pytest.mark.parametrize("source", [MEMFD, PIPE])
@pytest.mark.parametrize("sink", [DEVNULL, MEMFD, PIPE])
def test_ends_carry_the_content(loop, source, sink):
    with Content("random", 3 << 20, 2) as content, Ends(source, sink, content, loop) as ends:
        copies = [
            subprocess.Popen(["cat"], stdin=into, stdout=out)
            for into, out in zip(ends.inputs, ends.outputs, strict=True)
        ]
        ends.handed_over()
        assert [copy.wait() for copy in copies] == [0, 0]
        ends.settle()


def test_what_did_not_arrive_is_noticed(loop):
    with Content("random", 3 << 20) as content, Ends(MEMFD, MEMFD, content, loop) as ends:
        subprocess.run(["head", "-c", "3000000"], stdin=ends.inputs[0], stdout=ends.outputs[0])
        with pytest.raises(ProgramFailed, match="other bytes arrived at"):
            ends.settle()


def test_the_loop_moves_by_each_strategy(loop):
    with Content("random", 4 << 20, 2) as content:
        for source in (MEMFD, PIPE):
            for mover in loops(loop):
                if mover.suits((source, MEMFD)):
                    with Ends(source, MEMFD, content, loop) as ends:
                        moved = mover.move(ends, wires.Loopback())
                    assert moved.wire >= content.size


def test_asyncio_moves(loop):
    with Content("random", 4 << 20) as content, Ends(PIPE, MEMFD, content, loop) as ends:
        peers()[-1].move(ends, wires.Loopback())


def test_a_missing_peer_says_so():
    mover = Piped("x", (("no-such-program", "HOST"),), (("cat",),))
    assert mover.missing() == "no-such-program not installed"


def test_a_program_that_hangs_is_ended():
    with pytest.raises(ProgramFailed, match="not done after"), Programs(0.2) as programs:
        programs.start(["sleep", "60"], NULL, NULL).finish()


def test_a_program_that_fails_says_why():
    with Programs(30) as programs:
        program = programs.start(["sh", "-c", "echo the reason >&2; exit 3"], NULL, NULL)
        with pytest.raises(ProgramFailed, match="ended with 3: the reason"):
            program.value("cpu")


@pytest.mark.parametrize(("name", "rate"), [("loopback", None), ("veth", None), ("veth 2.5", 2.5)])
def test_the_rate_is_in_the_name_of_a_wire(name, rate):
    assert wires.rate_of(name) == rate


def test_without_a_veth_loopback_is_left(monkeypatch):
    monkeypatch.setattr(wires, "why_no_veth", lambda: "no veth: network namespaces need root")
    with wires.Wires() as some:
        assert some.get("veth") is None
        assert some.get("loopback") is not None
        assert some.why_not == "no veth: network namespaces need root"


def spaces():
    return [path.name for path in Path("/run/netns").glob("vfioflow-bench-*")]


def test_the_namespaces_go_with_the_veth(namespaces):
    veth = wires.Veth()

    def use():
        with veth:
            veth.shape(1)
            veth.shape(None)
            assert set(veth.spaces) <= set(spaces())
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        use()
    assert not set(veth.spaces) & set(spaces())


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_namespaces_go_with_the_process(namespaces, end):
    program = (
        "import signal; from comparison import commandline, wires\n"
        "signal.signal(signal.SIGTERM, commandline.stop)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
        "with wires.Wires() as some:\n"
        "    print(some.why_not, flush=True); signal.pause()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=BENCH, stdout=subprocess.PIPE, stderr=NULL, text=True
    )
    assert child.stdout.readline() == "None\n"
    mine = [name for name in spaces() if f"-{child.pid}-" in name]
    assert len(mine) == 2
    child.send_signal(end)
    child.wait()
    child.stdout.close()
    if end == signal.SIGKILL:
        wires.sweep()  # as the next run does
    assert not set(mine) & set(spaces())


def test_the_command_line():
    options = commandline.parser(None).parse_args(
        ["raw", "--gib", "0.5", "--only", "a b", "--only", "c"]
    )
    assert (options.what, options.gib, options.only) == ("raw", 0.5, ["a b", "c"])
    with pytest.raises(SystemExit):
        commandline.parser(None).parse_args(["everything"])


def test_only_chooses_cells():
    stage = Stage("", wires.Wires(), print, print, print, only=["memfd veth 16", "pipe"])
    assert stage.wants("memfd, /dev/null, veth, 16")
    assert stage.wants("pipe memfd loopback 1")
    assert not stage.wants("memfd /dev/null veth 1")
