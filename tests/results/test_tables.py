"""How records look beside each other, and beside numbers from elsewhere."""

import pytest
from example_records import make

from sslcourse import results


def test_a_table_sets_ours_beside_others():
    published = {"source": "published", "method": "SimCLR", "dataset": "CIFAR-10", "metrics": {"top1": 0.906}}
    published |= {"differs": "ResNet-50, 1000 epochs"}
    made = results.table([make(), published])
    assert made.header == ["method", "source", "dataset", "labels", "top1", "differs"]
    assert made.rows[0] == ["Supervised", "ours", "toybox", "100", "87.3 ± 0.4 %", "–"]
    assert made.rows[1] == ["SimCLR", "published", "CIFAR-10", "–", "90.6 %", "ResNet-50, 1000 epochs"]
    assert str(made).splitlines()[1].startswith("----------  -----")
    assert made._repr_markdown_().splitlines()[1] == "| --- | --- | --- | --- | --- | --- |"
    assert str(results.table([])).startswith("method")
    with pytest.raises(ValueError, match="rumour"):
        results.table([{"source": "rumour"}])


def test_a_table_chooses_columns_escapes_what_it_shows_and_breaks_long_names_of_code():
    row = {"method": "<script>|x", "labels": 5000, "metrics": {"loss": {"value": 1.23456, "unit": "number"}}}
    two = make(labels=None, metrics={"loss": {"value": 2, "unit": "number"}})
    made = results.table([row, two], columns=["method", "labels", "loss", "nothing"])
    assert made.rows == [["<script>|x", "5,000", "1.235", "–"], ["Supervised", "all", "2", "–"]]
    assert "<script>" not in made._repr_html_() and "&lt;script&gt;" in made._repr_html_()
    assert "| &lt;script>\\|x |" in made._repr_markdown_()  # Markdown takes HTML as it is
    cells = ["87.3 ± 0.4 %", "LogSoftmaxBackward0, output 0", "buffer: norm.running_mean", "SimCLR, initialisation"]
    shown = results.Table(["top1"], [[cell] for cell in cells])._repr_html_()
    assert ">87.3 ± 0.4&nbsp;%<" in shown and ">SimCLR, initialisation<" in shown
    assert ">Log<wbr>Softmax<wbr>Backward0, output 0<" in shown and ">buffer: norm.<wbr>running_<wbr>mean<" in shown


def test_runs_tier_and_origin_can_be_shown_and_the_overview_is_in_order():
    rows = results.fill([make(tier="smoke", method="SimCLR")], [make(seed=[0, 1, 2])])
    made = results.table([*rows, {"method": "BYOL"}], ["method", "runs", "tier", "origin"])
    assert made.rows == [["SimCLR", "1", "smoke", "this run"], ["Supervised", "3", "cpu", "shipped"], ["BYOL", "–", "–", "–"]]
    records = [make(lesson=2, labels=n, method=m) for n in (None, 500, 100) for m in ("b", "a")] + [make(seed=[0, 1])]
    lines = results.overview(records)._repr_markdown_().splitlines()
    assert lines[0] == "| lesson | method | dataset | pixels | labels | network | top1 | top3 | runs | tier | lesson took |"
    assert lines[2] == "| 1 | Supervised | toybox | 32 | 100 | ResNet-9 | 87.3 ± 0.4 % | – | 2 | cpu | 0.2 min |"
    assert [line.split(" | ")[1] + line.split(" | ")[4] for line in lines[3:]] == ["a100", "b100", "a500", "b500", "aall", "ball"]
