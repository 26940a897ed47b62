from rich.console import Console

from edgeprune import tables


def drawn(renderable, capsys):
    Console(width=100, highlight=False).print(renderable)
    return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_facts_leave_out_what_is_too_much_for_a_line(capsys):
    entries = {
        "size_bytes": 12_345,
        "installed": True,
        "runtime": None,
        "cpu": {"cores": 4},
        "none": [],
        "many": list(range(99)),
    }
    assert drawn(tables.facts(entries), capsys) == [
        ["size", "bytes", "12,345"],
        ["installed", "yes"],
        ["runtime", "–"],
        ["cpu", "cores", "4"],
        ["none", "none"],
    ]


def test_a_profile_says_why_there_is_no_latency(capsys):
    lines = drawn(
        tables.profile({"latency": {"ms": None, "reason": "emulated"}, "ops": [{"index": 0, "op": "ADD", "ms": None}]}),
        capsys,
    )
    assert lines == [["latency", "–", "(emulated)"]]


def test_a_profile_shows_the_ops_that_have_a_time(capsys):
    timed = {
        "latency": {"ms": 3.1, "kind": "measured", "threads": 4},
        "ops": [{"index": 7, "op": "CONV_2D", "ms": 0.125}],
    }
    lines = drawn(tables.profile(timed), capsys)
    assert lines[0] == ["latency", "3.1", "ms", "(measured,", "4", "threads)"]
    assert lines[-1] == ["7", "CONV_2D", "0.125"]


def test_markup_in_a_name_is_a_name(capsys):
    assert drawn(tables.words({"[bold]x": "a [red] sentence"}), capsys) == [["[bold]x", "a", "[red]", "sentence"]]


def test_shapes(capsys):
    layer = {"class": "Add", "params": 0, "macs": 0, "sparsity": None, "pruning": None}
    layers = [
        {**layer, "name": "[b]one", "output_shape": [None, 8]},
        {**layer, "name": "two", "output_shape": [[4], [2, 2]]},
    ]
    found = {"name": "net", "layers": layers, "params": 0, "macs": 0, "sparsity": None}
    lines = drawn(tables.keras(found), capsys)
    assert lines[1][:3] == ["[b]one", "Add", "?×8"]
    assert lines[2][:4] == ["two", "Add", "4,", "2×2"]
