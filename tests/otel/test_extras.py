"""Each hook works with what it needs and nothing more; without it, one sentence says what to install."""

import subprocess
import sys

import pytest

MISSING = """
import sys
sys.modules.update(dict.fromkeys({gone!r}))  # importing what is None there fails
"""

RUN = """
from flowcore import Engine, Workflow
wf = Workflow("trip")
wf.add_step("book", lambda ctx: "seat 7")
engine = Engine(hooks=[hook])
assert engine.run(wf)["book"] == "seat 7"
"""


def without(gone: list[str], code: str) -> subprocess.CompletedProcess[str]:
    program = MISSING.format(gone=gone) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("gone", "code", "said"),
    [
        (
            ["opentelemetry"],
            "from flowcore_otel import TracingHook",
            "TracingHook needs opentelemetry-api: pip install 'flowcore[otel]'",
        ),
        (
            ["opentelemetry"],
            "from flowcore_otel import MetricsHook",
            "MetricsHook needs opentelemetry-api: pip install 'flowcore[otel]'",
        ),
        (
            ["prometheus_client"],
            "from flowcore_otel import PrometheusHook",
            "PrometheusHook needs prometheus-client: pip install 'flowcore[prometheus]'",
        ),
    ],
)
def test_a_missing_extra_is_one_sentence(gone: list[str], code: str, said: str) -> None:
    done = without(gone, code)
    assert sentence(done) == f"ImportError: {said}"
    assert "During handling" not in done.stderr


@pytest.mark.parametrize(
    ("gone", "code"),
    [
        (["opentelemetry.sdk", "prometheus_client"], "from flowcore_otel import TracingHook; hook = TracingHook()"),
        (["opentelemetry.sdk", "prometheus_client"], "from flowcore_otel import MetricsHook; hook = MetricsHook()"),
        (["opentelemetry"], "from flowcore_otel import PrometheusHook; hook = PrometheusHook()"),
        (["opentelemetry", "prometheus_client"], "from flowcore_otel import LogContext; hook = LogContext()"),
    ],
)
def test_each_hook_works_with_its_own_extra_alone(gone: list[str], code: str) -> None:
    done = without(gone, code + RUN)
    assert (done.returncode, done.stderr) == (0, "")


def test_flowcore_itself_imports_no_telemetry() -> None:
    code = "import flowcore, sys; print([m for m in sys.modules if m.startswith(('opentel', 'prom', 'flowcore_otel'))])"
    done = without([], code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_an_unknown_name_is_an_attribute_error_and_the_known_ones_are_listed() -> None:
    import flowcore_otel

    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = flowcore_otel.Nonsense
    assert flowcore_otel.__all__ == sorted(flowcore_otel.__all__)
    assert set(flowcore_otel.__all__) <= set(dir(flowcore_otel))
    assert all(getattr(flowcore_otel, name).__name__ == name for name in flowcore_otel.__all__)
