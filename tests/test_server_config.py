"""Settings come from flags, then from variables, then from what is written down."""

import dataclasses
import io
from contextlib import redirect_stdout

import pytest
from sonde_server.config import SettingError, Settings


def read(*flags: str, **environment: str) -> Settings:
    return Settings.from_environment_and_flags(flags, environment)


def test_nothing_given_is_the_embedded_model_on_the_loopback() -> None:
    settings = read()
    assert settings == Settings()
    assert (settings.model, settings.host, settings.port) == ("atlas", "127.0.0.1", 50051)


def test_a_flag_goes_before_a_variable_and_a_variable_before_the_default() -> None:
    settings = read("--port", "7", SONDE_PORT="8", SONDE_MODEL="gpt2", SONDE_GRACE="1.5", SONDE_DTYPE="")
    assert (settings.port, settings.model, settings.grace, settings.dtype) == (7, "gpt2", 1.5, "auto")


@pytest.mark.parametrize(("text", "value"), [("off", False), ("0", False), ("TRUE", True), ("yes", True)])
def test_switches_in_variables(text: str, value: bool) -> None:
    assert read(SONDE_REFLECTION=text).reflection is value
    assert read("--no-reflection", SONDE_REFLECTION=text).reflection is False


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SONDE_PORT", "65536"),
        ("SONDE_PORT", "http"),
        ("SONDE_MAX_RUNS", "-1"),
        ("SONDE_DTYPE", "int8"),
        ("SONDE_REFLECTION", "maybe"),
        ("SONDE_GRACE", "nan"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(variable: str, value: str) -> None:
    with pytest.raises(SettingError) as caught:
        read(**{variable: value})
    name = variable.removeprefix("SONDE_").lower().replace("_", "-")
    assert variable in str(caught.value) or f"--{name}" in str(caught.value)
    assert value in str(caught.value)


def test_help_tells_of_every_setting_its_flag_variable_and_default() -> None:
    shown = io.StringIO()
    with redirect_stdout(shown), pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = " ".join(shown.getvalue().split())
    for one in dataclasses.fields(Settings):
        assert "--" + one.name.replace("_", "-") in text
        assert "SONDE_" + one.name.upper() in text
        assert one.metadata["help"] in text


@pytest.mark.parametrize("columns", [72, 80, 97, 120])
def test_help_breaks_no_line_inside_a_command(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = io.StringIO()
    with redirect_stdout(shown), pytest.raises(SystemExit):
        read("--help")
    lines = shown.getvalue().splitlines()
    assert sum("`sonde-server token NAME`" in line for line in lines) == 2
    assert [line for line in lines if line.count("`") % 2 or len(line) > columns] == []


def test_the_limits_of_a_request_are_those_that_were_set() -> None:
    limits = read("--max-runs", "5", "--max-prompt-tokens", "6", "--max-answer-bytes", "7").limits
    assert (limits.max_runs, limits.max_prompt_tokens, limits.max_answer_bytes) == (5, 6, 7)
