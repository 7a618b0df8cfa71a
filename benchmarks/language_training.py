"""Training steps of GPT-2 and BERT-base against KerasHub and Hugging Face transformers, in turns in one process.

    KERAS_BACKEND=jax python benchmarks/language_training.py [--models gpt2 bert_base] [--length 128] [--batch 4]
    KERAS_BACKEND=jax python benchmarks/language_training.py --precision mixed_bfloat16 --length 1024 --batch 16 \\
        --device "<name>" --peak 989 --compile

Each figure is the median of rounds in which every contender takes one step on the same tokens: forward, backward, AdamW,
without dropout. GPT-2 foretells the next token of every place, BERT-base classifies each text. Ours and KerasHub's run as
Keras compiles them (`train_on_batch`, XLA on JAX); transformers, where torch is installed, plainly or through
`torch.compile` with fused AdamW as in nanoGPT. `--peak` gives the share of the device's peak by the count of PaLM (Chowdhery
et al. 2022, appendix B): 6 operations for each weight and token, and 12 * depth * width * length for attention.
"""

import argparse
import os
import sys
from pathlib import Path

from record import append
from turns import Runner, in_turns

MODELS = ("gpt2", "bert_base")
RATE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--batch", type=int, default=4, help="texts of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_bfloat16"))
    parser.add_argument("--compile", action="store_true", help="transformers through torch.compile")
    parser.add_argument("--device", default="", help="name of the accelerator, for the row")
    parser.add_argument("--peak", type=float, help="TFLOP/s that the device can reach at most in that precision")
    parser.add_argument("--peers", nargs="*", default=["keras_hub", "transformers"], help="whom to compare with")
    parser.add_argument(
        "--keep", action="store_true", help="append the rows to benchmarks/results/language_training.csv"
    )
    given = parser.parse_args()
    import keras

    keras.config.set_dtype_policy(given.precision)
    for name in given.models:
        runners, work = _contenders(name, given)
        medians = in_turns(runners, given.rounds)
        del runners
        keras.utils.clear_session()
        rate = given.batch * given.length / medians["zoo"]
        share = work * rate / (given.peak * 1e12) if given.peak else None
        ratios = {key: value / medians["zoo"] for key, value in medians.items() if key != "zoo"}
        print(
            f"{name}, {given.batch} x {given.length} tokens: "
            + ", ".join(f"{key} {1000 * value:.0f} ms" for key, value in medians.items())
            + "".join(f"; {ratio:.2f} times as fast as {key}" for key, ratio in ratios.items())
            + f"; {rate:,.0f} tokens/s"
            + (f", {share:.1%} of the peak" if share else ""),
            flush=True,
        )
        if given.keep:
            append(
                "language_training",
                {
                    "model": name,
                    "length": given.length,
                    "batch": given.batch,
                    "precision": given.precision,
                    "backend": keras.config.backend(),
                    "rounds": given.rounds,
                    "zoo_ms": f"{1000 * medians['zoo']:.1f}",
                    **{
                        f"{peer}_ms": f"{1000 * medians[peer]:.1f}" if peer in medians else ""
                        for peer in ("keras_hub", "transformers")
                    },
                    **{
                        f"times_{peer}": f"{ratios[peer]:.2f}" if peer in ratios else ""
                        for peer in ("keras_hub", "transformers")
                    },
                    "torch_compile": given.compile,
                    "tokens_per_s": f"{rate:.0f}",
                    "share_of_peak": f"{share:.3f}" if share else "",
                },
                device=given.device,
                packages=("zooroad", "keras", "tensorflow", "jax", "keras-hub", "torch", "transformers"),
            )
    return 0


def _contenders(name: str, given: argparse.Namespace) -> tuple[dict[str, Runner], float]:
    """A step of each, and operations of ours for a token."""
    import numpy as np

    import zoo

    generator = np.random.default_rng(0)
    texts = generator.integers(1000, 20_000, (given.batch, given.length + 1), dtype=np.int32)
    tokens = np.ascontiguousarray(texts[:, :-1])
    wanted = np.ascontiguousarray(texts[:, 1:]) if name == "gpt2" else generator.integers(0, 2, given.batch)
    ours = zoo.get(name, input_shape=(given.length,), dropout=0.0)
    runners = {"zoo": _keras_step(ours, tokens, wanted)}
    if "keras_hub" in given.peers:
        import keras_hub

        if name == "gpt2":
            backbone = keras_hub.models.GPT2Backbone(**_sizes(50_257, 1024))
            theirs = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
        else:
            backbone = keras_hub.models.BertBackbone(**_sizes(30_522, 512))
            theirs = keras_hub.models.BertTextClassifier(backbone=backbone, num_classes=2, preprocessor=None)
        inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens), "segment_ids": np.zeros_like(tokens)}
        runners["keras_hub"] = _keras_step(theirs, {port.name: inputs[port.name] for port in theirs.inputs}, wanted)
    if "transformers" in given.peers:
        runners["transformers"] = _torch_step(name, tokens, wanted, given)
    return runners, 6 * ours.count_params() + 12 * 12 * 768 * given.length


def _sizes(vocabulary: int, length: int) -> dict[str, float]:
    """KerasHub's names of the sizes that both models have."""
    return {
        "vocabulary_size": vocabulary,
        "num_layers": 12,
        "num_heads": 12,
        "hidden_dim": 768,
        "intermediate_dim": 3072,
        "dropout": 0.0,
        "max_sequence_length": length,
    }


def _keras_step(model, inputs, wanted) -> Runner:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled = keras.config.backend() == "jax"
    model.compile(keras.optimizers.AdamW(RATE), loss, weighted_metrics=None, jit_compile=compiled)  # KerasHub has some
    placed = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    return lambda: float(model.train_on_batch(placed, wanted, return_dict=True)["loss"])


def _torch_step(name: str, tokens, wanted, given: argparse.Namespace) -> Runner:
    import torch

    transformers = _transformers()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "gpt2":
        config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = transformers.BertForSequenceClassification(config)
    model.to(device).train()
    stepped = torch.compile(model) if given.compile else model
    optimiser = torch.optim.AdamW(model.parameters(), RATE, fused=device == "cuda")
    read, true = torch.from_numpy(tokens).long().to(device), torch.from_numpy(wanted).long().to(device)
    kind = torch.bfloat16 if given.precision != "float32" else torch.float32

    def run() -> object:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, kind, enabled=kind != torch.float32):
            logits = (
                stepped(input_ids=read, use_cache=False).logits if name == "gpt2" else stepped(input_ids=read).logits
            )
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, -2), true.flatten())
        loss.backward()
        optimiser.step()
        return loss.item()

    return run


def _transformers():
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
    import references

    if references.installed("torchvision"):  # which transformers imports, whole or not
        references.torchvision()
    import transformers

    return transformers


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
