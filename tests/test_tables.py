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


BOARD = {
    "board": "pi@x",
    "target": "rpi4",
    "latency": {"ms": 3.1, "kind": "measured", "threads": 4, "p90_ms": 3.4, "warning": "it was hot"},
    "runtime": "tflite-runtime 2.14.0",
    "device": {
        "cpu": "Raspberry Pi 4 Model B Rev 1.4",
        "conditions": {"before": {"throttled": 0}, "after": {}, "words": "governor ondemand -> governor ondemand"},
        "remarks": ["its highest clock is 1800 MHz"],
    },
}


def test_a_profile_of_a_board_says_what_the_board_did_and_what_is_doubtful(capsys):
    lines = "\n".join(map(" ".join, drawn(tables.profile(BOARD), capsys)))
    assert "conditions" in lines
    assert "governor ondemand -> governor ondemand" in lines
    assert "doubtful: it was hot" in lines
    assert "its highest clock is 1800 MHz" in lines
    assert "throttled" not in lines


def test_several_boards_are_a_line_each_and_one_that_failed_says_why(capsys):
    failed = {"board": "pi@y", "target": "rpi4", "error": "it is gone."}
    lines = "\n".join(map(" ".join, drawn(tables.profiles({"boards": [BOARD, failed]}), capsys)))
    assert "3.40 ms" in lines
    assert "pi@x: doubtful: it was hot" in lines
    assert "pi@y: it is gone." in lines


def test_a_profile_shows_the_ops_that_have_a_time(capsys):
    timed = {
        "latency": {"ms": 3.1, "kind": "measured", "threads": 4},
        "ops": [{"index": 7, "op": "CONV_2D", "ms": 0.125}],
    }
    lines = drawn(tables.profile(timed), capsys)
    assert lines[0] == ["latency", "3.1", "ms", "(measured,", "4", "threads)"]
    assert lines[-1] == ["7", "CONV_2D", "0.125", "█" * tables.BAR]


def test_markup_in_a_name_is_a_name(capsys):
    assert drawn(tables.words({"[bold]x": "a [red] sentence"}), capsys) == [["[bold]x", "a", "[red]", "sentence"]]


def test_groups_say_what_can_be_cut_and_why_not(capsys):
    def group(name, reasons=(), inexact=()):
        more = {"reasons": list(reasons), "inexact": list(inexact), "producers": [name], "consumers": []}
        return {"name": name, "units": 16, "step": 2, "cuttable": not reasons, **more}

    found = {
        "groups": [
            group("stem"),
            group("classes", ["are an output of the model"]),
            group("last", inexact=["normalized"]),
        ],
        "blocks": [{"name": "b", "addition": "sum", "layers": ["a", "b"]}],
    }
    lines = [" ".join(line) for line in drawn(tables.groups(found), capsys)]
    assert lines[1:4] == ["stem 16 2 stem – yes", "classes 16 2 classes – no", "last 16 2 last – yes"]
    assert lines[4:] == [
        "2 of 3 groups can be cut.",
        "left whole: classes: its channels are an output of the model",
        "cutting is not the same as zeroing: last: normalized",
        "removable whole, at 'sum': a, b",
    ]


def test_what_breaks_the_int8_guarantee_is_told(capsys):
    empty = {"ops": [], "tensors": [], "params": 0, "macs": 0, "sparsity": None, "size_bytes": 9, "size_gzip_bytes": 9}
    found = {**empty, "int8_share": None, "float_ops": [], "notes": [], "int8_violations": []}
    assert ["int8", "throughout."] in drawn(tables.tflite(found), capsys)
    found["int8_violations"] = [{"kind": "size", "message": f"number {number}"} for number in range(22)]
    lines = [" ".join(line) for line in drawn(tables.tflite(found), capsys)]
    assert "not int8 throughout, 22 violations:" in lines and lines[-2:] == ["number 19", "... and 2 more"]


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
