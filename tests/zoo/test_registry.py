import sys
from importlib.metadata import EntryPoint

import pytest

from zoo import registry


def test_names_filters_by_pattern_and_task():
    assert registry.names("res*") == ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50", "resnet50v2"]
    assert "resnet50" not in registry.names(task="regression")
    assert "mlp" in registry.names("m*", task="regression")


@pytest.mark.parametrize(("alias", "name"), [("resnet", "resnet50"), ("cnn", "lenet")])
def test_aliases(alias, name):
    assert registry.entry(alias) is registry.entry(name)


def test_unknown_name_suggests():
    with pytest.raises(
        KeyError, match=r"no model is called 'resnt18' \(\d+ are registered\)\. Did you mean 'resnet18'"
    ):
        registry.get("resnt18")


def test_unknown_task_suggests():
    with pytest.raises(ValueError, match="Did you mean 'regression'"):
        registry.names(task="regresion")


def test_unknown_argument_suggests():
    with pytest.raises(TypeError, match=r"'mlp' takes no argument 'clases'; it takes .*Did you mean 'classes'"):
        registry.get("mlp", clases=3)


def test_arguments_of_a_wrong_kind_are_named():
    with pytest.raises(TypeError, match=r"input_shape takes a tuple such as \(784,\), got 5"):
        registry.get("mlp", input_shape=5)
    with pytest.raises(TypeError, match="width takes a number such as 64, got 'abc'"):
        registry.get("lstm", width="abc")
    with pytest.raises(ValueError, match=r"dropout must be a share in \[0, 1\), got dropout=2"):
        registry.get("lenet", dropout=2)
    with pytest.raises(ValueError, match="classes must be at least 1, got classes=0"):
        registry.get("resnet50", classes=0)
    for name in ("resnet18", "resnet50v2"):
        with pytest.raises(ValueError, match="width must be at least 1, got width=0"):
            registry.get(name, width=0)


def test_show_names_paper_and_count():
    text = registry.show("resnet")
    assert "He, Zhang, Ren & Sun 2015" in text
    assert "25,557,032 trainable" in text


def test_models_of_other_packages(tmp_path, monkeypatch):
    (tmp_path / "guest_models.py").write_text(
        '''"""A guest (Someone 2020)."""
from zoo.registry import Tensor, register


@register("guest", task="classification", inputs={"inputs": Tensor("features")}, paper="Someone 2020", params=6,
          tiny=dict(classes=2))
def guest(input_shape: tuple = (2,), classes: int = 2):
    """Build a guest."""
    return (input_shape, classes)
'''
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("guest", "guest_models", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: [point])
    registry.entries.cache_clear()
    try:
        assert "guest" in registry.names()
        assert "guest_models" not in sys.modules
        assert registry.get("guest", classes=3) == ((2,), 3)
    finally:
        registry.entries.cache_clear()
        sys.modules.pop("guest_models", None)


def test_a_decorator_with_a_computed_argument_is_refused(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text('@register("bad", task=TASK)\ndef bad(classes: int = 2): ...\n')
    with pytest.raises(NameError, match=r"line 1.*write the value out"):
        list(registry._read(path, "bad"))


def test_a_builder_without_defaults_is_refused(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text('@register("bad", task="x", inputs={}, paper="", params=1, tiny={})\ndef bad(classes): ...\n')
    with pytest.raises(TypeError, match="give every argument a default"):
        list(registry._read(path, "bad"))
