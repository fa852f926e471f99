"""Who may migrate, and why not."""

from vfioflow.admission import Facts, check_match, check_set
from vfioflow.states import FLAG_SETS, Flags

STOP_COPY, P2P, PRE_COPY, ALL = FLAG_SETS


def test_one_device_needs_no_p2p():
    assert check_set([Facts("acc0", "hisi_acc_vfio_pci", PRE_COPY)]) == {}


def test_a_set_needs_p2p_of_each_and_says_whose_is_missing():
    reasons = check_set(
        [
            Facts("net0", "mlx5_vfio_pci", ALL),
            Facts("acc0", "hisi_acc_vfio_pci", PRE_COPY),
            Facts("gpu0", "xe_vfio_pci", P2P),
        ]
    )
    assert list(reasons) == ["acc0"]
    assert "hisi_acc_vfio_pci has no P2P states" in reasons["acc0"]
    assert "migrate it alone" in reasons["acc0"]


def test_a_driver_without_migration():
    assert check_set([Facts("x", "nvgrace_gpu", Flags.NONE)]) == {
        "x": "its driver nvgrace_gpu does not support migration"
    }


def test_an_empty_set_and_double_names():
    assert check_set([]) == {"(none)": "there is no device to migrate"}
    twice = [Facts("a", "mlx5_vfio_pci", ALL), Facts("a", "mlx5_vfio_pci", ALL)]
    assert check_set(twice) == {"a": "two devices of the set have this name"}


def test_a_match_needs_name_driver_and_flags():
    source = [
        Facts("same", "mlx5_vfio_pci", ALL),
        Facts("gone", "mlx5_vfio_pci", ALL),
        Facts("other", "mlx5_vfio_pci", ALL),
        Facts("less", "mlx5_vfio_pci", ALL),
    ]
    destination = [
        Facts("less", "mlx5_vfio_pci", P2P),
        Facts("other", "xe_vfio_pci", ALL),
        Facts("same", "mlx5_vfio_pci", ALL),
        Facts("spare", "mlx5_vfio_pci", ALL),
    ]
    assert check_match(source, destination) == {
        "gone": "the destination has no device of this name",
        "other": "its driver is mlx5_vfio_pci, the destination's is xe_vfio_pci",
        "less": "the destination's lacks PRE_COPY",
        "spare": "the source does not offer it, it would stay empty",
    }


def test_more_flags_at_the_destination_do_no_harm():
    assert check_match([Facts("a", "d", P2P)], [Facts("a", "d", ALL)]) == {}
