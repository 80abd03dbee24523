"""The published tables: one format, and numbers that agree with each other."""

import json
import math
from collections import defaultdict

import pytest

from fastdl_lib.core.datasets import data_folder
from fastdl_lib.measuring.evidence import Column, Provenance
from fastdl_lib.measuring.published import published

FILES = sorted((data_folder() / "published").glob("*.json"))
TEXTS = ("schema", "name", "title", "source", "url", "item", "how_read")
KEYS = {*TEXTS, "caveats", "tags", "columns", "rows"}


def load(name: str) -> dict:
    return json.loads((data_folder() / "published" / f"{name}.json").read_text(encoding="utf-8"))


def test_there_are_tables():
    assert {"fig_8_14", "alexnet_shapes"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_format(path):
    table = json.loads(path.read_text(encoding="utf-8"))
    assert set(table) == KEYS
    for key in TEXTS:
        assert isinstance(table[key], str) and table[key].strip(), key
    assert table["schema"] == "fastdl-published/1"
    assert table["name"] == path.stem
    assert table["url"].startswith(("http://", "https://"))
    assert all(isinstance(caveat, str) and caveat for caveat in table["caveats"])

    columns = [column["name"] for column in table["columns"]]
    assert len(set(columns)) == len(columns) and "tag" not in columns
    for column in table["columns"]:
        assert set(column) == {"name", "unit", "description"}
        assert column["description"]

    assert table["rows"]
    for row in table["rows"]:
        assert set(row) == {*columns, "tag"}, row
        assert row["tag"] in table["tags"], row
    assert {row["tag"] for row in table["rows"]} == set(table["tags"]), "a tag nothing uses"
    seen = [json.dumps(row, sort_keys=True) for row in table["rows"]]
    assert len(set(seen)) == len(seen), "a row stands twice"

    for column in columns:
        values = [row[column] for row in table["rows"] if row[column] is not None]
        kinds = {float if type(value) is int else type(value) for value in values}
        assert len(kinds) == 1, column
        assert kinds != {float} or all(math.isfinite(value) for value in values), column


def test_fig_8_14_sums():
    rows = load("fig_8_14")["rows"]
    share = {(row["device"], row["layer"]): row["share_pct"] for row in rows}
    read = {(row["device"], row["layer"]) for row in rows if row["tag"] == "READ"}
    for device, conv in (("GPU", 92.1), ("CPU", 86.1)):
        layers = [layer for d, layer in share if d == device and layer.startswith("conv")]
        assert len(layers) == 5 and all((device, layer) in read for layer in layers)
        assert sum(share[device, layer] for layer in layers) == pytest.approx(conv, abs=0.001)
        total = sum(value for (d, _), value in share.items() if d == device)
        # relu4, relu5 and pool5 are left out: at most 0.3 % each.
        assert 99 < total <= 100.05

    # Conv and the labelled fc slices: what the book gives as convolution's share.
    def with_fc(device):
        layers = [name for d, name in read if d == device and name.startswith(("conv", "fc"))]
        return sum(share[device, layer] for layer in layers)

    assert with_fc("GPU") == pytest.approx(94.7, abs=0.001)
    assert with_fc("CPU") == pytest.approx(88.7, abs=0.001)


def test_alexnet_totals():
    rows = load("alexnet_shapes")["rows"]
    assert sum(row["parameters"] for row in rows) == 60_965_224
    assert sum(row["macs_per_image"] for row in rows) == 724_406_816
    conv = [row for row in rows if row["layer"].startswith("conv")]
    assert sum(row["parameters"] for row in conv) / 60_965_224 == pytest.approx(0.038, abs=5e-4)
    assert sum(row["macs_per_image"] for row in conv) / 724_406_816 == pytest.approx(
        0.919, abs=5e-4
    )


@pytest.mark.parametrize("row", load("alexnet_shapes")["rows"], ids=lambda row: row["layer"])
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
    runs = {row["run"]: row for row in load("convnet_benchmarks_runs")["rows"]}
    layers = defaultdict(dict)
    for row in load("convnet_benchmarks_layers")["rows"]:
        layers[row["run"]][row["layer"]] = row["forward_ms"]
        run = runs[row["run"]]
        for key in ("device", "machine", "batch", "commit", "file"):
            assert row[key] == run[key], (row["run"], key)
    assert len(runs) == 5 and len(layers) == 3
    for name, times in layers.items():
        run = runs[name]
        assert sum(times.values()) == pytest.approx(run["forward_ms"], rel=0.005)
        conv = sum(ms for layer, ms in times.items() if layer.startswith("conv"))
        assert 100 * conv / run["forward_ms"] == pytest.approx(run["conv_forward_pct"], abs=0.3)
        fc = sum(ms for layer, ms in times.items() if layer.startswith("fc"))
        if run["fc_forward_pct"] is None:
            assert fc == 0
        else:
            assert 100 * fc / run["forward_ms"] == pytest.approx(run["fc_forward_pct"], abs=0.1)


# --- chapter 03 ---------------------------------------------------------------------------------

# What a class would train on: the 90 passes of 2012 over ILSVRC-2012's images.
IMAGES = 90 * 1_281_167


def images_per_s(row):
    return row["images_per_s"] or 1e3 * row["images"] / row["time_ms"]


def speeds():
    return {row["run"]: row for row in load("alexnet_training_speeds")["rows"]}


def test_fig_8_15_ratios():
    days = {row["device"]: row["days"] for row in load("fig_8_15")["rows"]}
    cpu, titan, black, x = days.values()
    assert (cpu, titan) == (43, 6.0)
    assert [round(cpu / gpu, 1) for gpu in (titan, black, x)] == [7.2, 9.1, 17.2]


@pytest.mark.parametrize("row", speeds().values(), ids=lambda row: row["run"])
def test_a_training_speed_is_printed_or_follows_from_its_time(row):
    printed = row["images_per_s"] is not None
    for key in ("images", "time_ms"):
        assert (row[key] is None) == printed, key
    if row["forward_ms"] is None:
        assert row["backward_ms"] is None
    else:
        # The README rounds each of the three to a whole millisecond.
        total = row["forward_ms"] + row["backward_ms"]
        assert total == pytest.approx(row["time_ms"], abs=1.0)
        assert row["forward_ms"] < row["backward_ms"]
    assert (row["kind"] == "CPU") == (row["gpus"] is None)
    if row["kind"] == "CPU":
        (log,) = (
            run for run in load("convnet_benchmarks_runs")["rows"] if run["run"] == row["run"]
        )
        for key in ("forward_ms", "backward_ms", "batch", "software"):
            assert row[key] == log[key]
        assert row["time_ms"] == pytest.approx(total) and row["images"] == row["batch"]


def test_the_logs_agree_with_the_slide_within_a_fifth():
    """Three programs that have nothing to do with the slide: sources computed 51, 6.8, 2.4 days."""
    slide = {row["device"]: row["days"] for row in load("fig_8_15")["rows"]}
    runs = speeds()
    for run, days, device in (
        ("cpu_openblas_2015", 51, "16-core Xeon CPU"),
        ("caffe_titan", 6.8, "Titan"),
        ("titanx_cudnn_r2", 2.4, "Titan X + cuDNN"),
    ):
        own = IMAGES / images_per_s(runs[run]) / 86_400
        assert own == pytest.approx(days, rel=0.02)
        assert own == pytest.approx(slide[device], rel=0.2)


def test_training_speeds_as_they_are_quoted():
    runs = speeds()
    assert len(runs) == 26
    for run, speed in (
        ("caffe_titan", 195),
        ("titanx_cudnn_r2", 554),
        ("titanx_cudnn_r4_fp32", 1580),
    ):
        assert round(images_per_s(runs[run])) == speed
    assert runs["titanx_cudnn_r4_fp16"]["time_ms"] == 71
    one, eight = (images_per_s(runs[f"tf_p100_{n}"]) for n in (1, 8))
    assert round(eight / one, 1) == 6.0


def test_datasheets_have_the_ridges_that_are_quoted():
    """FLOP per byte in float32: a wrong digit in either number would move it."""
    ridges = {
        row["gpu"]: round(1e3 * row["fp32_tflops"] / row["memory_gb_per_s"], 1)
        for row in load("gpu_datasheets")["rows"]
    }
    assert ridges == {
        "GTX Titan": 15.6,
        "K40": 14.9,
        "K80": 18.2,
        "Titan X (Maxwell)": 18.1,
        "P100 SXM2": 14.7,
        "V100 SXM2": 17.4,
        "A100 80 GB": 9.6,
        "H100 SXM": 20.0,
        "H200 SXM": 14.0,
    }
    tensor = {row["gpu"]: row["fp16_tensor_tflops"] for row in load("gpu_datasheets")["rows"]}
    assert [tensor[gpu] for gpu in ("V100 SXM2", "A100 80 GB", "H100 SXM")] == [125, 312, 989]


# --- chapter 04 ---------------------------------------------------------------------------------

SCALING = (
    "scaling_tensorflow_0_8",
    "scaling_tensorflow_2017",
    "scaling_cscs_2017",
    "scaling_tensorflow_2017_single",
)


@pytest.mark.parametrize("name", SCALING)
def test_scaling_curves_start_at_one_gpu_and_never_beat_it_by_much(name):
    curves = defaultdict(list)
    for row in load(name)["rows"]:
        curves[row["curve"]].append(row)
    for curve, rows in curves.items():
        gpus = [row["gpus"] for row in rows]
        assert gpus == sorted(set(gpus)) and gpus[0] == 1, curve
        # The same run throughout: only the number of GPUs, servers and modes may change.
        for key in ("network", "parameters_mb", "gpu", "batch_per_gpu", "gpus_per_node"):
            assert len({row.get(key) for row in rows}) == 1, (curve, key)
        speedups = [row["speedup"] for row in rows]
        assert speedups[0] == 1 and speedups == sorted(speedups), curve
        assert all(s <= 1.02 * n for s, n in zip(speedups, gpus, strict=True)), curve
        for row in rows:
            if "images_per_s" in row:
                ratio = row["images_per_s"] / rows[0]["images_per_s"]
                assert row["speedup"] == pytest.approx(ratio, abs=0.0051), row
            servers = row.get("parameter_servers")
            assert servers is None or 1 <= servers <= row["gpus"], row


def test_scaling_has_the_eighty_points_and_known_sums():
    tables = {name: load(name)["rows"] for name in SCALING}
    assert [len(rows) for rows in tables.values()] == [7, 49, 24, 68]
    assert [row["speedup"] for row in tables["scaling_tensorflow_0_8"]] == [1, 2, 4, 8, 15, 40, 56]
    # Sums of all images a second: a digit typed wrong anywhere moves one.
    sums = {
        name: sum(row["images_per_s"] for row in rows)
        for name, rows in tables.items()
        if "images_per_s" in rows[0]
    }
    assert sums == {
        "scaling_tensorflow_2017": pytest.approx(65946.9, abs=0.01),
        "scaling_cscs_2017": pytest.approx(34698.707, abs=0.01),
        "scaling_tensorflow_2017_single": pytest.approx(30054.7, abs=0.01),
    }


# --- chapter 05 ---------------------------------------------------------------------------------


def test_half_precision_rates_are_twice_or_a_64th_or_none():
    rates = {row["compute_capability"]: row for row in load("half_precision_rates")["rows"]}
    ratios = {
        name: row["fp16_per_clock"] and row["fp16_per_clock"] / row["fp32_per_clock"]
        for name, row in rates.items()
    }
    assert ratios == {
        "3.x": None,
        "5.0, 5.2": None,
        "5.3": 2,
        "6.0": 2,
        "6.1": 1 / 64,
        "6.2": 2,
        "7.x": 2,
    }
    assert sum(row["fp32_per_clock"] for row in rates.values()) == 832
    # A generation is named once, and the GPUs of GP100 and of its smaller relatives are kept apart.
    assert "P100" in rates["6.0"]["gpus"] and "GTX 1080" in rates["6.1"]["gpus"]


def test_mixed_precision_costs_no_accuracy_to_speak_of():
    rows = load("mixed_precision_training")["rows"]
    differences = {row["network"]: row["mixed_pct"] - row["baseline_pct"] for row in rows}
    assert all(-0.02 < difference < 0.29 for difference in differences.values())
    assert [name for name, difference in differences.items() if difference < 0] == ["Inception v2"]
    # Sums: a digit typed wrong anywhere moves one.
    assert sum(row["baseline_pct"] for row in rows) == pytest.approx(410.30, abs=0.001)
    assert sum(row["mixed_pct"] for row in rows) == pytest.approx(410.98, abs=0.001)


# --- chapter 06 ---------------------------------------------------------------------------------


def test_binary_speedups():
    rows = load("binary_speedups")["rows"]
    dabnn = [row for row in rows if row["paper"] == "daBNN"]
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in dabnn:
        ratios[row["baseline"]].append(row["baseline_ms"] / row["binary_ms"])
    assert [round(ratio) for ratio in ratios["Caffe, float"]] == [57, 74, 72, 56, 21]
    assert [round(ratio, 1) for ratio in ratios["TFLite, float"]] == [9.1, 10.8, 11.1, 8.6, 3.6]
    # Binary itself, and slower than the float library on three of four, and on the whole network.
    pairs = zip(ratios["BMXNet, binary"], ratios["TFLite, float"], strict=True)
    assert [binary > in_float for binary, in_float in pairs] == [True, True, True, False, True]
    times = {(row["paper"], row["baseline"][:6]): row["times"] for row in rows if row["times"]}
    assert round(64 * 256 * 9 / (256 * 9 + 64), 2) == times["XNOR-Net", "counte"]
    for row in rows:
        assert (row["times"] is None) != (row["baseline_ms"] is None) == (row["binary_ms"] is None)


def test_binary_accuracies():
    rows = load("binary_accuracies")["rows"]
    for row in rows:
        assert (row["error_pct"] is None) != (row["accuracy_pct"] is None)
        assert (row["accuracy_pct"] is not None) == (row["dataset"] == "ImageNet")
        assert row["tag"] == ("READ-2nd" if row["source"] == "BNN" else "READ")
    alexnet = [row["accuracy_pct"] for row in rows if row["network"] == "AlexNet"]
    assert round(sum(alexnet), 1) == 185.5 and max(alexnet) == 56.8


def test_scaling_constants_are_sourced_and_calculated_right():
    rows = load("scaling_constants")["rows"]
    for row in rows:
        assert row["unit"] and len(row["source"]) > 10, row["name"]
        assert (row["tag"] == "ASSUMPTION") == row["source"].startswith("assumption: "), row["name"]
    computed = {row["name"]: row["value"] for row in rows if row["tag"] == "COMPUTED"}
    harmonic_100 = sum(1 / i for i in range(1, 101))
    wanted = {
        "backward_share": 2 / 3,
        "spread": 0.1 / (harmonic_100 - 1),
        "grpc_2017": 100 * 0.1 / 16 / 0.613,
        "grpc_latency": 0.0018 / 2,
    }
    assert computed == pytest.approx(wanted, rel=1e-12)
    k40 = {row["name"]: row["value"] for row in rows if row["name"].startswith("k40_")}
    assert k40["k40_batch"] / k40["k40_step"] == pytest.approx(9.5, abs=0.01)


def test_scaling_clusters_are_made_of_the_constants():
    known = {row["name"]: row["value"] for row in load("scaling_constants")["rows"]}
    rows = load("scaling_clusters")["rows"]
    for row in rows:
        if row["tag"] == "SIZE":
            assert row["constant"] is None and isinstance(row["value"], int)
        else:
            # Of eight GPUs two share each way into memory: four ways, the one multiple there is.
            ways = 4 if row["gpu"] == "P100 DGX-1" and "host_total" in row["quantity"] else 1
            assert row["value"] == ways * known[row["constant"]], row
        assert row["tag"] != "ASSUMPTION" or row["note"]
    tables = (path for path in FILES if path.stem.startswith("scaling_"))
    measured = {row["gpu"] for path in tables for row in load(path.stem)["rows"] if "gpus" in row}
    assert {row["gpu"] for row in rows} == measured


def test_scaling_largest_tensors_follow_from_their_shapes():
    for row in load("scaling_largest_tensors")["rows"]:
        assert row["bytes"] == 4 * math.prod(row["shape"])


# --- reading a table ----------------------------------------------------------------------------

FIGURE = {
    "schema": "fastdl-published/1",
    "name": "figure",
    "title": "Shares of the forward time",
    "source": "A thesis",
    "url": "https://example.org",
    "item": "Figure 1",
    "how_read": "labels in the figure",
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
    """Write published tables into a data folder of their own."""
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path))

    def write(rule=lambda fields: None, name="figure"):
        fields = json.loads(json.dumps(FIGURE))
        rule(fields)
        (folder / f"{name}.json").write_text(json.dumps(fields))

    return write


def test_a_published_table_is_read(publish):
    publish()
    table = published("figure")
    assert (table.source, table.item, table.caveats) == ("A thesis", "Figure 1", ("one run",))
    assert table.columns[1] == Column("share_pct", unit="%", provenance=Provenance.PUBLISHED)
    assert [row["share_pct"] for row in table.rows] == [60.5, 39.5]


def test_rows_are_selected(publish):
    publish()
    table = published("figure")
    assert [row["layer"] for row in table.select(layer="fc6", tag="READ")] == ["fc6"]
    with pytest.raises(KeyError, match=r"figure has no column 'device'; it has \['layer'"):
        table.select(device="GPU")
    with pytest.raises(ValueError, match="figure has no row with"):
        table.select(layer="conv9")


def test_a_published_table_says_so_where_it_shows(publish):
    publish()
    shown = published("figure").table(layer="conv1")
    assert shown.caption == "Shares of the forward time (published: A thesis, Figure 1)"
    assert len(shown.rows) == 1 and "published" in str(shown).splitlines()[2]


def test_an_unknown_table_lists_those_there_are(publish):
    publish(name="b")
    publish(name="a")
    with pytest.raises(
        FileNotFoundError, match=r"no file c\.json in published/; it holds \['a\.js"
    ):
        published("c")


def test_a_damaged_table_is_refused(publish, tmp_path):
    publish()
    path = tmp_path / "published" / "figure.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match=r"figure\.json is damaged"):
        published("figure")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        *(
            (lambda f, key=key: f.pop(key), f"missing fields.*{key}")
            for key in FIGURE
            if key != "schema"
        ),
        (lambda f: f.update(schema="fastdl-published/9"), "has the schema 'fastdl-published/9'"),
        (lambda f: f["rows"][1].pop("share_pct"), "row 2 must have exactly the columns"),
        (lambda f: f["rows"][0].update(extra=1), "row 1 must have exactly the columns"),
        (lambda f: f["rows"][0].pop("tag"), "row 1 must have exactly the columns"),
        (lambda f: f["rows"].append([1, 2]), "row 3 must have exactly the columns"),
        (lambda f: f["rows"][1].update(tag="HEARD"), "row 2 has the tag 'HEARD'"),
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
