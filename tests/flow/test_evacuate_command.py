"""``vfioflow evacuate`` as a command."""

from pathlib import Path

from processes import running

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "evacuate" / "fleet.toml"


def says(*args):
    with running("evacuate", *args) as command:
        return command.end()


def test_the_example_is_planned_and_who_stays_is_told(tmp_path):
    html = tmp_path / "fleet.html"
    code, out, log = says(EXAMPLE, "--html", html)
    assert (code, log) == (6, "")
    lines = [line.strip() for line in out.splitlines()]
    assert lines[1] == "6 of 7 machines leave in 12.6 s, 644 ms of downtime in all"
    assert "Why this order" in lines
    assert any(line.startswith("render cannot leave within 600 ms: 1024.0 MiB") for line in lines)
    assert any(line.startswith("-> would help: a downtime limit of 753 ms, or") for line in lines)
    assert any(line.startswith("all at once") and line.endswith("late: db") for line in lines)
    assert lines[-1] == f"The page is in {html}."
    assert "<h2>Why this order</h2>" in html.read_text()


def test_the_plan_as_json():
    with running("evacuate", EXAMPLE, "--json", "--at-once", "1") as command:
        code, plan = command.report()
    assert code == 6
    assert {len(group["machines"]) for group in plan["groups"]} == {1}
    assert plan["groups"][0]["machines"] == ["db"]
    assert [each["name"] for each in plan["stay"]] == ["render"]
    assert plan["exact"] is True


def test_who_can_all_leave_ends_with_zero(tmp_path):
    plan = tmp_path / "plan.toml"
    (tmp_path / "d.toml").write_text('[[device]]\nname = "nic"\nprofile = "virtio"\n')
    plan.write_text('[wire]\nrate = "1Gbit"\n[[machines]]\nname = "a"\ndevices = "d.toml"\n')
    code, out, _ = says(plan)
    assert code == 0
    assert "1 of 1 machines leave in " in out


def test_a_wrong_plan_is_a_line_and_a_code(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text('[wire]\nrate = "1Gbit"\n[[machines]]\nname = "a"\ndevices = "no.toml"\n')
    code, out, log = says(plan)
    assert (code, out) == (2, "")
    where = tmp_path / "no.toml"
    assert log == (
        f"vfioflow: error: {plan}: machine a: {where}: cannot be read: No such file or directory\n"
    )
