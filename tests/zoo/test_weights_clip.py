"""CLIP with the weights of Hugging Face files gives the answers of transformers, on both backends."""

import json
from functools import partial
from pathlib import Path

import keras
import make_clip
import numpy as np
import onnxruntime
import pytest
import references
from safetensors.numpy import save_file

import export
import zoo
from zoo import registry
from zoo.layers.tokens import TokenOf

golden = partial(references.golden, make_clip.PLACE)  # weights of the reference, and what it answers


def arguments(kind):
    _, _, _, image, text = make_clip.SIZES[kind]
    names = ("width", "depth", "heads", "hidden")
    sizes = dict(zip(names, image, strict=True))
    return sizes | {f"text_{name}": size for name, size in zip(names, text, strict=True)}


def loaded(kind, folder, weights=None, **more):
    save_file(golden(kind)[0] if weights is None else weights, Path(folder) / "model.safetensors")
    return zoo.get("clip", weights=Path(folder) / "model.safetensors", **{**arguments(kind), **more})


def inputs(kind):
    return dict(zip(("image", "tokens"), make_clip.inputs(kind), strict=True))


def answers(model, given):
    """Unit vectors of pictures and of texts, and logits, beside each other as the reference has them."""
    pairs = keras.ops.convert_to_numpy(model(given, training=False))
    image, text = (keras.Model(model.input, model.get_layer(f"{part}_embedding").output) for part in ("image", "text"))
    vectors = [keras.ops.convert_to_numpy(tower(given, training=False)) for tower in (image, text)]
    return np.concatenate([*vectors, pairs[:, 0] @ pairs[:, 1].T], axis=1)


def compare(folder, kind, weights, expected):
    found = answers(loaded(kind, folder, weights), inputs(kind))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.also_jax
@pytest.mark.parametrize("kind", list(make_clip.SIZES))
def test_answers_are_those_of_the_reference(tmp_path, kind):
    compare(tmp_path, kind, *golden(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(make_clip.SIZES))
def test_answers_are_those_of_the_reference_live(tmp_path, kind):
    if not references.installed("torch", "transformers"):
        pytest.skip("compares with torch and transformers themselves, which are not installed")
    shapes, expected = make_clip.torch_answers(kind, seed=5)
    compare(tmp_path, kind, references.weights(shapes, seed=5), expected)


@pytest.mark.parametrize("change", [{"epsilon": 1e-2}, {"heads": 4}, {"text_heads": 4}, {"end": 0}])
def test_the_comparison_would_notice_what_the_file_does_not_say(tmp_path, change):
    found = answers(loaded("small", tmp_path, **change), inputs("small"))
    assert np.abs(found - golden("small")[1]).max() > 1e-3


def test_the_file_of_a_loaded_model_answers_as_it_does(tmp_path):
    model = loaded("small", tmp_path)
    export.to_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, inputs("small"))[0]
    np.testing.assert_allclose(found[:, 0] @ found[:, 1].T, golden("small")[1][:, -make_clip.ROWS :], atol=1e-5)


def test_what_stands_behind_the_end_of_a_text_has_no_influence(tmp_path):
    model, given = loaded("small", tmp_path), inputs("small")
    other = {**given, "tokens": given["tokens"].copy()}
    other["tokens"][1, 6:] = 7  # its end is at place 5
    np.testing.assert_allclose(answers(model, other), answers(model, given), atol=1e-6)


def test_the_vector_of_a_token_is_the_first_or_the_last():
    x = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    tokens = np.array([[9, 5, 9], [5, 9, 9], [5, 5, 9], [5, 5, 5]], np.int32)
    found = keras.ops.convert_to_numpy(TokenOf(9)(x, tokens))
    np.testing.assert_array_equal(found, [x[0, 0], x[1, 1], x[2, 2], x[3, 2]])


def test_names_and_sizes_are_those_of_the_authors():
    # transformers 5.23.0: CLIPModel(config).num_parameters() with the configurations of openai's files
    expected = {"clip": 151_277_313, "clip_vit_b_16": 149_620_737, "clip_vit_l_14": 427_616_513}
    assert {name: registry.entry(name).params for name in expected} == expected
    assert registry.entry("clip_vit_b_32").name == "clip"


def test_the_file_says_what_it_can(tmp_path):
    model = loaded("deep", tmp_path)
    assert {tensor.name: tensor.shape for tensor in model.inputs} == {"image": (None, 16, 16, 3), "tokens": (None, 12)}
    assert model.get_layer("text_words").input_dim == 40 and model.get_layer("text_token").number == 39
    assert model.output_shape == (None, 2, 6)
    assert model.pretrained.scaling.startswith("122.77")


def test_positions_are_cut_or_resampled(tmp_path):
    whole, given = loaded("small", tmp_path), inputs("small")
    short = loaded("small", tmp_path, length=9)
    given["tokens"][0, 8] = make_clip.VOCABULARY - 1
    np.testing.assert_allclose(
        answers(short, {**given, "tokens": given["tokens"][:, :9]}), answers(whole, given), atol=1e-5
    )
    larger = loaded("small", tmp_path, input_shape=(20, 16, 3))
    assert larger.get_layer("image_positions").grid.shape == (5, 4, 24)
    with pytest.raises(ValueError, match="the weights have 12 positions, the model 13; pass length=12 or less"):
        loaded("small", tmp_path, length=13)


def test_weights_may_lie_in_several_files(tmp_path):
    weights, expected = golden("small")
    names = sorted(weights)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: weights[name] for name in own}, tmp_path / part)
    places = {name: part for part, own in parts.items() for name in own}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    model = zoo.get("clip", weights=tmp_path, **arguments("small"))
    assert np.abs(answers(model, inputs("small")) - expected).max() <= 1e-5


@pytest.mark.parametrize(("tower", "ours"), [("vision", "heads"), ("text", "text_heads")])
def test_a_config_with_other_heads_is_refused(tmp_path, tower, ours):
    (tmp_path / "config.json").write_text(json.dumps({f"{tower}_config": {"num_attention_heads": 1}}))
    with pytest.raises(
        ValueError, match=rf"says {tower}_config\.num_attention_heads=1, clip has {ours}=.*; pass {ours}=1"
    ):
        loaded("small", tmp_path)


def test_our_own_files_are_loaded_back(tmp_path):
    sizes = {**registry.entry("clip").tiny, "latent": 4}
    model = zoo.get("clip", **sizes)
    model.get_layer("pairs").scale.assign(3.25)
    random = np.random.RandomState(0)
    given = {"image": random.standard_normal((2, 8, 8, 3)), "tokens": random.randint(0, 20, (2, 7)).astype(np.int32)}
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    for path in tmp_path.iterdir():
        again = zoo.get("clip", weights=path, **sizes)
        np.testing.assert_array_equal(answers(again, given), answers(model, given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 10, "heads": 3}, "width must be a multiple of heads, got width=10, heads=3"),
        ({"text_heads": 5}, "multiple of heads, got .* text_width=8, text_heads=5"),
        ({"latent": 0}, "latent must be at least 1, got 0"),
        ({"text_hidden": -1}, r"hidden and text_hidden must be at least 0, got \(0, -1\)"),
        ({"input_shape": (8, 3, 3)}, r"at least 4 pixels a side for patches of 4, got \(8, 3, 3\)"),
    ],
)
def test_arguments_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("clip", **{**registry.entry("clip").tiny, **given})


def tokenizer(path):
    """A `tokenizer.json` whose words are the tokens of the reference, with the end behind each text, as CLIP's has it."""
    import tokenizers

    vocabulary = {f"w{number}": number for number in range(make_clip.VOCABULARY - 1)}
    vocabulary |= {"<|endoftext|>": make_clip.VOCABULARY - 1}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w1"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", make_clip.VOCABULARY - 1)]
    )
    made.save(str(path))
    return path


def test_published_weights_and_their_tokenizer_are_a_classifier_at_once(tmp_path):
    model, given = loaded("small", tmp_path), inputs("small")
    labels = [" ".join(f"w{token}" for token in row[: int(row.argmax())]) for row in given["tokens"]]
    found = zoo.zero_shot(model, labels, "{}", tokenizer=tokenizer(tmp_path / "tokenizer.json"))
    expected = golden("small")[1][:, -make_clip.ROWS :]
    np.testing.assert_allclose(found.model.predict_on_batch(given["image"]), expected, atol=1e-4)
    assert found.signature.preprocess.mean[0] == pytest.approx(0.48145466 * 255)
    assert found.signature.preprocess.std[2] == pytest.approx(0.27577711 * 255)
