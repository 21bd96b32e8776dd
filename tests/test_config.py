import dataclasses

import pytest

from muscjax import config
from muscjax.errors import InputError


def test_presets_are_hashable_and_differ():
    assert len({config.released(), config.paper(), config.muscjax()}) == 3
    assert {name: make().preset for name, make in config.PRESETS.items()} == {n: n for n in config.PRESETS}
    assert config.preset("released") == config.Config()


def test_override_reads_toml_values_and_bare_words():
    changed = config.override(
        config.released(),
        "cae.confidence=false",
        "snamd.degrees=[1, 3]",
        "scoring.average=mean",
        "scoring.interval=1",
        "input.map_size=112",
    )
    assert changed.cae.confidence is False
    assert changed.snamd.degrees == (1, 3)
    assert changed.scoring.average == "mean"
    assert changed.scoring.interval == 1.0
    assert isinstance(changed.scoring.interval, float)
    assert changed.input.map_size == 112
    assert config.override(changed, "input.map_size=none").input.map_size is None


def test_from_toml_starts_from_its_preset(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('preset = "paper"\n[ipg]\ngroups = 64\n')
    assert config.from_toml(path) == dataclasses.replace(
        config.paper(), ipg=dataclasses.replace(config.paper().ipg, groups=64)
    )


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("cae.confidance=false", "cae.confidance is unknown; cae has"),
        ("cea.confidence=false", "'cea' is no stage"),
        ("cae.confidence=3", "found 3, expected bool"),
        ("cae.rescale=ranks", "expected one of rank, range"),
        ("cae", "expected stage.field=value"),
        ("preset=paper", "'preset' is no stage"),
        ("scoring.interval=0.0", "must lie in (0, 1]"),
        ("snamd.degrees=[2]", "odd and positive"),
        ("ipg.initial_size=200", "1..ipg.group_size"),
        ("run.memory_budget=5", "at least 64 MiB"),
        ("input.window=object2", "expected one of whole, object"),
        ("input.window_margin=2", "must lie in [0, 1]"),
        ("network.depths=[0.5, 0.0]", "must lie in (0, 1]"),
        ("maps.spread=0.0", "must lie in 0.1..10"),
    ],
)
def test_bad_overrides_name_the_field(assignment, named):
    with pytest.raises(InputError, match=r".*") as raised:
        config.override(config.released(), assignment)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["= 3", "preset = 'none'", "[ipg]\ngroup = 3", "x = 1"])
def test_bad_files_name_the_file(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(InputError):
        config.from_toml(path)
    with pytest.raises(InputError, match=r"absent\.toml"):
        config.from_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GiB", 4 << 30), ("500 MB", 500_000_000), ("1024", 1024), ("1.5k", 1536), ("7b", 7)],
)
def test_bytes(text, expected):
    assert config.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "4 gigs", "4XB"])
def test_bad_bytes(text):
    with pytest.raises(InputError, match="memory-budget"):
        config.parse_bytes(text)


def test_a_store_s_window_outlives_a_preset_that_is_named_again():
    from muscjax.cli import options

    first = config.override(config.muscjax(), "input.window_side=229")
    for window in (first, config.override(first, "input.window=whole", "input.window_side=none")):
        again = options.configured("muscjax", None, None, base=window)
        assert again.input == window.input
    asked = options.configured("muscjax", None, ["input.window_side=100"], base=first)
    assert asked.input.window_side == 100
