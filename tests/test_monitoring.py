"""The Grafana dashboard and the alert rules ask for metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import Histogram

from chunkcache.metrics import Metrics

DOCKER = Path(__file__).parent.parent / "docker"
RULES = DOCKER / "prometheus" / "alerts.yml"
OPERATIONS = DOCKER.parent / "docs" / "operations.md"
DASHBOARD = DOCKER / "grafana" / "chunkcache.json"
OUTSIDE = {"job", "instance", "le"}  # labels that Prometheus puts on itself


def served() -> dict[str, set[str]]:
    """The names of all series of `/metrics`, and the labels of each."""
    found: dict[str, set[str]] = {}
    metrics = Metrics()
    for metric in vars(metrics).values():
        if metric is metrics.registry:
            continue
        (family,) = metric.collect()
        labels = set(metric._labelnames)
        if isinstance(metric, Histogram):
            for suffix in ("bucket", "sum", "count"):
                found[f"{family.name}_{suffix}"] = labels
        else:
            found[family.name + ("_total" if family.type == "counter" else "")] = labels
    return found


def rules() -> list[dict[str, str]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]


def test_every_series_asked_for_is_served_with_its_labels() -> None:
    known = served()
    asked: set[str] = set()
    for where, text in expressions():
        for name, selector in re.findall(r"(chunkcache_\w+)(?:\{(.*?)\})?", text):
            assert name in known, f"{where}: {name}"
            labels = set(re.findall(r"(\w+)\s*[!=~]+", selector))
            assert labels <= known[name] | OUTSIDE, f"{where}: {name}"
            asked.add(name)
        grouped = {
            label.strip() for by in re.findall(r"by \((.*?)\)", text) for label in by.split(",")
        }
        some = set().union(*(known[n] for n in re.findall(r"chunkcache_\w+", text)), OUTSIDE)
        assert grouped <= some, where
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert families - shown == set(), "metrics that nothing shows"


def test_panels_have_a_place_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    assert len(rules()) == len({rule["alert"] for rule in rules()}) > 5
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_operations_explain_every_alert_and_no_other() -> None:
    explained = re.findall(r"^\| `(Chunkcache\w+)` \|", OPERATIONS.read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(rule["alert"] for rule in rules())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_dashboards_expressions(tmp_path: Path) -> None:
    """As recording rules, with Grafana's own variables put in."""
    texts = [text for _, text in expressions() if "label_values" not in text]
    for name, value in {"$job": ".+", "$__rate_interval": "5m"}.items():
        texts = [text.replace(name, value) for text in texts]
    records = [{"record": f"x:{i}", "expr": text} for i, text in enumerate(texts)]
    group = {"name": "dashboard", "rules": records}
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [group]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
