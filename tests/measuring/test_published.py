"""The published tables: one format, and numbers that agree with each other."""

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest

from fastdl_lib.core.datasets import data_folder
from fastdl_lib.measuring.evidence import Column, Provenance
from fastdl_lib.measuring.published import published
from fastdl_lib.measuring.speeds import published_training_speeds

FILES = sorted((data_folder() / "published").glob("*.json"))
TEXTS = ("schema", "name", "title", "source", "url", "item", "how_read")


def rows_of(name, key=None):
    """A table's rows, by what they hold in the column ``key`` if it is given."""
    rows = published(name).rows
    return {row[key]: row for row in rows} if key else rows


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_format(path):
    """What reading a table does not ask of it."""
    table, fields = published(path.stem), json.loads(path.read_text(encoding="utf-8"))
    assert table.name == path.stem and table.url.startswith(("http://", "https://"))
    assert all(fields[key].strip() for key in TEXTS)
    assert all(isinstance(caveat, str) and caveat for caveat in table.caveats)
    assert all(column["description"] for column in fields["columns"])
    names = [column.key for column in table.columns]
    assert len({*names, "tag"}) == len(names) + 1
    assert {row["tag"] for row in table.rows} == set(table.tags), "a tag nothing uses"
    seen = {json.dumps(row, sort_keys=True) for row in table.rows}
    assert len(seen) == len(table.rows) > 0, "a row stands twice"
    for name in names:
        values = [row[name] for row in table.rows if row[name] is not None]
        kinds = {float if type(value) is int else type(value) for value in values}
        assert len(kinds) == 1, name
        assert kinds != {float} or all(math.isfinite(value) for value in values), name


def test_every_table_has_a_check_of_its_own():
    here = Path(__file__).read_text(encoding="utf-8")
    unchecked = [path.stem for path in FILES if f'"{path.stem}"' not in here]
    assert not unchecked, "add a sum to test_known_sums, or a test, in this file"


@pytest.mark.parametrize(
    ("table", "column", "count", "total"),
    [
        ("alexnet_shapes", "parameters", 8, 60_965_224),
        ("alexnet_shapes", "macs_per_image", 8, 724_406_816),
        ("scaling_tensorflow_0_8", "speedup", 7, 126),
        ("scaling_tensorflow_2017", "images_per_s", 49, 65_946.9),
        ("scaling_cscs_2017", "images_per_s", 24, 34_698.707),
        ("scaling_tensorflow_2017_single", "images_per_s", 68, 30_054.7),
        ("half_precision_rates", "fp32_per_clock", 7, 832),
        ("energy_per_operation", "pj", 13, 4039.53),
        ("mixed_precision_training", "baseline_pct", 6, 410.30),
        ("mixed_precision_training", "mixed_pct", 6, 410.98),
    ],
)
def test_known_sums(table, column, count, total):
    """A digit typed wrong anywhere moves one."""
    rows = rows_of(table)
    assert len(rows) == count
    assert sum(row[column] for row in rows) == pytest.approx(total, rel=1e-7)


def test_units_give_the_datasheets_rates():
    for gpu, row in rows_of("gpu_units", "gpu").items():
        tflops = 2e-3 * row["multiprocessors"] * row["units"] * row["clock_ghz"]
        sheet = rows_of("gpu_datasheets", "gpu")[gpu]
        assert tflops == pytest.approx(sheet["fp32_tflops"], rel=0.01), gpu


# --- chapters 01 and 02 -------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "conv", "with_fc"), [("GPU", 92.1, 94.7), ("CPU", 86.1, 88.7)])
def test_fig_8_14_sums(device, conv, with_fc):
    rows = {row["layer"]: row for row in published("fig_8_14").select(device=device)}
    share = {layer: row["share_pct"] for layer, row in rows.items()}
    read = {layer for layer, row in rows.items() if row["tag"] == "READ"}
    convs = [layer for layer in share if layer.startswith("conv")]
    assert len(convs) == 5 and read.issuperset(convs)
    assert sum(share[layer] for layer in convs) == pytest.approx(conv, abs=0.001)
    # relu4, relu5 and pool5 are left out: at most 0.3 % each.
    assert 99 < sum(share.values()) <= 100.05
    # Conv and the labelled fc slices: what the book gives as convolution's share.
    labelled = sum(share[layer] for layer in read if layer.startswith(("conv", "fc")))
    assert labelled == pytest.approx(with_fc, abs=0.001)


@pytest.mark.parametrize("row", rows_of("alexnet_shapes"), ids=lambda row: row["layer"])
def test_alexnet_counts_follow_from_the_shapes(row):
    weight, out = row["weight_shape"], row["out_shape"]
    assert row["parameters"] == math.prod(weight) + weight[0]
    assert row["macs_per_image"] == math.prod(out) * math.prod(weight[1:])
    if row["layer"].startswith("fc"):
        assert (row["in_shape"], out) == ([weight[1]], [weight[0]])
        assert row["stride"] is row["padding"] is row["groups"] is row["im2col_floats"] is None
        return
    channels, *size = row["in_shape"]
    assert weight[1] * row["groups"] == channels and weight[0] % row["groups"] == 0
    expected = [
        (length + 2 * row["padding"] - kernel) // row["stride"] + 1
        for length, kernel in zip(size, weight[2:], strict=True)
    ]
    assert out == [weight[0], *expected]
    assert row["im2col_floats"] == channels * math.prod(weight[2:]) * math.prod(expected)


def test_the_layer_logs_add_up_to_their_runs():
    runs = rows_of("convnet_benchmarks_runs", "run")
    layers = defaultdict(dict)
    for row in rows_of("convnet_benchmarks_layers"):
        layers[row["run"]][row["layer"]] = row["forward_ms"]
        for key in ("device", "machine", "batch", "commit", "file"):
            assert row[key] == runs[row["run"]][key], (row["run"], key)
    assert len(runs) == 5 and len(layers) == 3
    for name, times in layers.items():
        run = runs[name]
        whole_ms = run["forward_ms"]
        assert sum(times.values()) == pytest.approx(whole_ms, rel=0.005)
        for kind, within in (("conv", 0.3), ("fc", 0.1)):
            share = 100 * sum(ms for layer, ms in times.items() if layer.startswith(kind))
            printed = run[f"{kind}_forward_pct"] or 0  # a log may hold no fc layer
            assert share / whole_ms == pytest.approx(printed, abs=within), (name, kind)


# --- chapter 03 ---------------------------------------------------------------------------------

SPEEDS = rows_of("alexnet_training_speeds", "run")


def images_per_s(run):
    return published_training_speeds()[run].median


@pytest.mark.parametrize("row", SPEEDS.values(), ids=lambda row: row["run"])
def test_a_training_speed_is_printed_or_follows_from_its_time(row):
    printed = row["images_per_s"] is not None
    assert [row[key] is None for key in ("images", "time_ms")] == [printed] * 2
    assert (row["kind"] == "CPU") == (row["gpus"] is None)
    assert (row["forward_ms"] is None) == (row["backward_ms"] is None)
    if row["forward_ms"] is not None:
        # The README rounds each of the three to a whole millisecond.
        assert row["forward_ms"] + row["backward_ms"] == pytest.approx(row["time_ms"], abs=1.0)
        assert row["forward_ms"] < row["backward_ms"]
    if row["kind"] == "CPU":
        log = rows_of("convnet_benchmarks_runs", "run")[row["run"]]
        for key in ("forward_ms", "backward_ms", "batch", "software"):
            assert row[key] == log[key]
        assert row["time_ms"] == pytest.approx(log["forward_ms"] + log["backward_ms"])
        assert row["images"] == row["batch"]


def test_the_logs_agree_with_the_slide_within_a_fifth():
    """Three programs that have nothing to do with the slide: sources computed 51, 6.8, 2.4 days."""
    assert len(SPEEDS) == 26 and SPEEDS["titanx_cudnn_r4_fp16"]["time_ms"] == 71
    assert round(images_per_s("titanx_cudnn_r4_fp32")) == 1580
    assert round(images_per_s("tf_p100_8") / images_per_s("tf_p100_1"), 1) == 6.0
    slide = {row["device"]: row["days"] for row in rows_of("fig_8_15")}
    cpu, titan, black, x = slide.values()
    assert (cpu, titan) == (43, 6.0)
    assert [round(cpu / gpu, 1) for gpu in (titan, black, x)] == [7.2, 9.1, 17.2]
    for run, days, device in (
        ("cpu_openblas_2015", 51, "16-core Xeon CPU"), ("caffe_titan", 6.8, "Titan"),
        ("titanx_cudnn_r2", 2.4, "Titan X + cuDNN"),
    ):  # fmt: skip
        own = 90 * 1_281_167 / images_per_s(run) / 86_400
        assert own == pytest.approx(days, rel=0.02)
        assert own == pytest.approx(slide[device], rel=0.2)


def test_datasheets_have_the_ridges_that_are_quoted():
    """FLOP per byte in float32: a wrong digit in either number would move it."""
    sheets = rows_of("gpu_datasheets", "gpu")
    ridges = {
        gpu: round(1e3 * row["fp32_tflops"] / row["memory_gb_per_s"], 1)
        for gpu, row in sheets.items()
    }
    assert ridges == {
        "GTX Titan": 15.6, "K40": 14.9, "K80": 18.2, "Titan X (Maxwell)": 18.1, "P100 SXM2": 14.7,
        "V100 SXM2": 17.4, "A100 80 GB": 9.6, "H100 SXM": 20.0, "H200 SXM": 14.0,
    }  # fmt: skip
    tensor = [sheets[g]["fp16_tensor_tflops"] for g in ("V100 SXM2", "A100 80 GB", "H100 SXM")]
    assert tensor == [125, 312, 989]


# --- chapter 04 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tensorflow_0_8", "tensorflow_2017", "cscs_2017", "tensorflow_2017_single"]
)
def test_scaling_curves_start_at_one_gpu_and_never_beat_it_by_much(name):
    curves = defaultdict(list)
    for row in rows_of(f"scaling_{name}"):
        curves[row["curve"]].append(row)
    for curve, rows in curves.items():
        gpus, speedups = ([row[key] for row in rows] for key in ("gpus", "speedup"))
        assert gpus == sorted(set(gpus)) and gpus[0] == 1, curve
        # The same run throughout: only the number of GPUs, servers and modes may change.
        for key in ("network", "parameters_mb", "gpu", "batch_per_gpu", "gpus_per_node"):
            assert len({row.get(key) for row in rows}) == 1, (curve, key)
        assert speedups[0] == 1 and speedups == sorted(speedups), curve
        assert all(s <= 1.02 * n for s, n in zip(speedups, gpus, strict=True)), curve
        for row in rows:
            if "images_per_s" in row:
                ratio = row["images_per_s"] / rows[0]["images_per_s"]
                assert row["speedup"] == pytest.approx(ratio, abs=0.0051), row
            servers = row.get("parameter_servers")
            assert servers is None or 1 <= servers <= row["gpus"], row


def test_scaling_constants_are_sourced_and_calculated_right():
    rows = rows_of("scaling_constants")
    for row in rows:
        assert row["unit"] and len(row["source"]) > 10, row["name"]
        assert (row["tag"] == "ASSUMPTION") == row["source"].startswith("assumption: "), row["name"]
    computed = {row["name"]: row["value"] for row in rows if row["tag"] == "COMPUTED"}
    wanted = {
        "backward_share": 2 / 3,
        "spread": 0.1 / (sum(1 / i for i in range(1, 101)) - 1),
        "grpc_2017": 100 * 0.1 / 16 / 0.613,
        "grpc_latency": 0.0018 / 2,
    }
    assert computed == pytest.approx(wanted, rel=1e-12)
    known = rows_of("scaling_constants", "name")
    ratio = known["k40_batch"]["value"] / known["k40_step"]["value"]
    assert ratio == pytest.approx(9.5, abs=0.01)
    for row in rows_of("scaling_largest_tensors"):
        assert row["bytes"] == 4 * math.prod(row["shape"])


def test_scaling_clusters_are_made_of_the_constants():
    known, rows = rows_of("scaling_constants", "name"), rows_of("scaling_clusters")
    for row in rows:
        if row["tag"] == "SIZE":
            assert row["constant"] is None and isinstance(row["value"], int)
        else:
            # Of eight GPUs two share each way into memory: four ways, the one multiple there is.
            ways = 4 if row["gpu"] == "P100 DGX-1" and "host_total" in row["quantity"] else 1
            assert row["value"] == ways * known[row["constant"]]["value"], row
        assert row["tag"] != "ASSUMPTION" or row["note"]
    tables = (path.stem for path in FILES if path.stem.startswith("scaling_"))
    measured = {row["gpu"] for name in tables for row in rows_of(name) if "gpus" in row}
    assert {row["gpu"] for row in rows} == measured


# --- chapters 05 and 06 -------------------------------------------------------------------------


def test_half_precision_rates_are_twice_or_a_64th_or_none():
    rates = rows_of("half_precision_rates", "compute_capability")
    ratios = {
        name: row["fp16_per_clock"] and row["fp16_per_clock"] / row["fp32_per_clock"]
        for name, row in rates.items()
    }
    assert ratios == {
        "3.x": None, "5.0, 5.2": None, "5.3": 2, "6.0": 2, "6.1": 1 / 64, "6.2": 2, "7.x": 2,
    }  # fmt: skip
    # A generation is named once, and the GPUs of GP100 and of its smaller relatives are kept apart.
    assert "P100" in rates["6.0"]["gpus"] and "GTX 1080" in rates["6.1"]["gpus"]


def test_mixed_precision_costs_no_accuracy_to_speak_of():
    differences = {
        name: row["mixed_pct"] - row["baseline_pct"]
        for name, row in rows_of("mixed_precision_training", "network").items()
    }
    assert all(-0.02 < difference < 0.29 for difference in differences.values())
    assert [name for name, difference in differences.items() if difference < 0] == ["Inception v2"]


def test_binary_speedups():
    rows = rows_of("binary_speedups")
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        assert (row["times"] is None) != (row["baseline_ms"] is None) == (row["binary_ms"] is None)
        if row["paper"] == "daBNN":
            ratios[row["baseline"]].append(row["baseline_ms"] / row["binary_ms"])
    assert [round(ratio) for ratio in ratios["Caffe, float"]] == [57, 74, 72, 56, 21]
    assert [round(ratio, 1) for ratio in ratios["TFLite, float"]] == [9.1, 10.8, 11.1, 8.6, 3.6]
    # Binary itself, and slower than the float library on three of four, and on the whole network.
    pairs = zip(ratios["BMXNet, binary"], ratios["TFLite, float"], strict=True)
    assert [binary > in_float for binary, in_float in pairs] == [True, True, True, False, True]
    times = {(row["paper"], row["baseline"][:6]): row["times"] for row in rows if row["times"]}
    assert round(64 * 256 * 9 / (256 * 9 + 64), 2) == times["XNOR-Net", "counte"]


def test_binary_accuracies():
    rows = rows_of("binary_accuracies")
    for row in rows:
        assert (row["error_pct"] is None) != (row["accuracy_pct"] is None)
        assert (row["accuracy_pct"] is not None) == (row["dataset"] == "ImageNet")
        assert row["tag"] == ("READ-2nd" if row["source"] == "BNN" else "READ")
    alexnet = [row["accuracy_pct"] for row in rows if row["network"] == "AlexNet"]
    assert round(sum(alexnet), 1) == 185.5 and max(alexnet) == 56.8


# --- reading a table ----------------------------------------------------------------------------

FIGURE = {
    **{key: "A text" for key in TEXTS},
    "schema": "fastdl-published/1",
    "caveats": ["one run"],
    "tags": {"READ": "read in the source"},
    "columns": [
        {"name": "layer", "unit": None, "description": "as labelled"},
        {"name": "share_pct", "unit": "%", "description": "of the whole"},
    ],
    "rows": [
        {"layer": "conv1", "share_pct": 60.5, "tag": "READ"},
        {"layer": "fc6", "share_pct": 39.5, "tag": "READ"},
    ],
}


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Write a published table into a data folder of its own."""
    path = tmp_path / "published" / "figure.json"
    path.parent.mkdir()
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path))

    def write(rule=lambda fields: None):
        fields = json.loads(json.dumps(FIGURE))
        rule(fields)
        path.write_text(json.dumps(fields))
        return path

    return write


def test_a_table_is_read_selected_and_says_that_it_is_published(publish):
    publish(lambda fields: fields.update(name="figure", source="A thesis", item="Figure 1"))
    table = published("figure")
    assert table.caveats == ("one run",)
    assert table.columns[1] == Column("share_pct", unit="%", provenance=Provenance.PUBLISHED)
    assert [row["layer"] for row in table.select(layer="fc6", tag="READ")] == ["fc6"]
    with pytest.raises(KeyError, match=r"figure has no column 'device'; it has \['layer'"):
        table.select(device="GPU")
    with pytest.raises(ValueError, match="figure has no row with"):
        table.select(layer="conv9")
    shown = table.table(layer="conv1")
    assert shown.caption == "A text (published: A thesis, Figure 1)"
    assert len(shown.rows) == 1 and "published" in str(shown).splitlines()[2]


def test_an_unknown_table_lists_those_there_are_and_a_damaged_one_is_refused(publish):
    path = publish()
    with pytest.raises(FileNotFoundError, match=r"no file c\.json .*; it holds \['figure\.json'"):
        published("c")
    whole = path.read_text()
    for text in (whole[:-9], "[" * 100_000, whole.replace("60.5", "NaN"), whole + whole):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"figure\.json is damaged"):
            published("figure")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        *((lambda f, key=key: f.pop(key), f"missing.*{key}") for key in FIGURE if key != "schema"),
        (lambda f: f.update(schema="fastdl-published/9"), "has the schema 'fastdl-published/9'"),
        (lambda f: f["rows"][1].pop("share_pct"), "row 2 must have exactly the columns"),
        (lambda f: f["rows"][0].update(extra=1), "row 1 must have exactly the columns"),
        (lambda f: f["rows"].append([1, 2]), "row 3 must have exactly the columns"),
        (lambda f: f["rows"][1].update(tag=["READ"]), r"row 2 has the tag \['READ'\]"),
        (lambda f: f["columns"][0].pop("unit"), r"a column: missing fields \['unit'\]"),
        (lambda f: f["columns"].append("x"), "a column is a JSON object, got str"),
        (lambda f: f.update(rows={}), "'rows' has the wrong type, dict"),
    ],
)
def test_a_table_that_breaks_the_format_is_refused(publish, rule, message):
    publish(rule)
    with pytest.raises(ValueError, match=message):
        published("figure")
