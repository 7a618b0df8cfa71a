"""Tokens a second of GPT-2 (124M, random weights, the same in all) on the processor: our decoder against its peers.

Peers: `generate` of Hugging Face transformers with a cache, in eight bits by torch's dynamic quantisation; and ONNX Runtime on a
file as Optimum writes it (the whole model with past keys and values in and out, logits of every place, here by
`torch.onnx.export`), in eight bits by `quantize_dynamic`, in a plain numpy loop. All write the likeliest tokens; contenders
take turns, and each round gives a ratio. Needs torch, transformers and safetensors.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.update({"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "-1"})
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.record import append

WIDTH, LAYERS, HEADS, VOCABULARY = 768, 12, 12, 50_257
PACKAGES = ("zooroad", "onnxruntime", "torch", "transformers", "tokenizers", "numpy")
TARGET = 1.0  # times the tokens of each peer
Writer = Callable[[np.ndarray, int], np.ndarray]  # prompts (batch, places) and how many -> tokens (batch, how many)


def reference(folder: Path) -> Any:
    """GPT-2 of transformers, with weights that are drawn once."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
    import references

    references.torchvision()
    import torch
    import transformers

    place = folder / "hf"
    if not (place / "model.safetensors").exists():
        torch.manual_seed(0)
        config = transformers.GPT2Config(bos_token_id=VOCABULARY - 1, eos_token_id=VOCABULARY - 1)
        transformers.GPT2LMHeadModel(config).save_pretrained(place)
    return transformers.GPT2LMHeadModel.from_pretrained(place, attn_implementation="sdpa").eval()


def linear(model: Any) -> Any:
    """The same with `Linear` in place of transformers' `Conv1D`, which torch does not quantise."""
    import torch

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Conv1D":
                made = torch.nn.Linear(*child.weight.shape)
                made.weight.data, made.bias.data = child.weight.data.T.contiguous(), child.bias.data
                setattr(module, name, made)
    return model


def with_torch(model: Any) -> Writer:
    import torch

    def write(prompts: np.ndarray, count: int) -> np.ndarray:
        ids = torch.from_numpy(prompts)
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, use_cache=True,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        return found[:, prompts.shape[1] :].numpy()

    return write


def as_optimum(model: Any, path: Path) -> None:
    """One file for the first step and for those behind it."""
    import torch
    from transformers.cache_utils import DynamicCache

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, positions: Any, *past: Any) -> tuple[Any, ...]:
            cache = DynamicCache(ddp_cache_data=[(past[at], past[at + 1]) for at in range(0, len(past), 2)])
            found = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            return (found.logits, *(x for layer in found.past_key_values.layers for x in (layer.keys, layer.values)))

    model.set_attn_implementation("eager")
    past = [f"past_key_values.{layer}.{what}" for layer in range(LAYERS) for what in ("key", "value")]
    present = [name.replace("past_key_values", "present") for name in past]
    values = [torch.zeros(2, HEADS, 5, WIDTH // HEADS) for _ in past]
    given = (
        torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 8, dtype=torch.long), torch.arange(5, 8)[None].repeat(2, 1),
    )  # fmt: skip
    axes = {"input_ids": {0: "batch", 1: "new"}, "attention_mask": {0: "batch", 1: "all"}}
    axes |= {"position_ids": {0: "batch", 1: "new"}, "logits": {0: "batch", 1: "new"}}
    axes |= {name: {0: "batch", 2: "past"} for name in past} | {name: {0: "batch", 2: "all"} for name in present}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Step(), (*given, *values), str(path), input_names=["input_ids", "attention_mask", "position_ids", *past],
            output_names=["logits", *present], dynamic_axes=axes, opset_version=17, dynamo=False,
        )  # fmt: skip


def with_optimum(path: Path, threads: int) -> Writer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    past = [port.name for port in session.get_inputs() if port.name.startswith("past")]

    def write(prompts: np.ndarray, count: int) -> np.ndarray:
        rows = len(prompts)
        held = {name: np.zeros((rows, HEADS, 0, WIDTH // HEADS), np.float32) for name in past}
        ids, at, made = prompts, 0, []
        while len(made) < count:
            new = ids.shape[1]
            positions = np.broadcast_to(np.arange(at, at + new), (rows, new))
            feed = {"input_ids": ids, "attention_mask": np.ones((rows, at + new), np.int64), "position_ids": positions}
            logits, *present = session.run(None, {**feed, **held})
            held = dict(zip(past, present, strict=True))
            at += new
            ids = logits[:, -1].argmax(axis=1)[:, None]
            made.append(ids)
        return np.concatenate(made, axis=1)

    return write


def bundle(folder: Path) -> Path:
    """Our files of the same weights, in every form."""
    place = folder / "ours"
    if (place / "model.json").exists():
        return place
    import zoo
    from export import continuing
    from zoo.data import Signature
    from zoo.data.texts import TextPreprocess

    place.mkdir(parents=True, exist_ok=True)
    model = zoo.get("gpt2", weights=folder / "hf", input_shape=(128,), dropout=0.0)
    step = TextPreprocess.fit(["a"], "bpe:257", 128)  # a token for each byte: only the number of tokens matters
    manifest = continuing.alone(model, Signature("language-modelling", ("a",), step), place, ("fp32", "w8", "w4"))
    (place / "model.json").write_text(manifest.to_json(), encoding="utf-8")
    print(json.dumps(manifest.generation["files"], indent=1))
    return place


def with_ours(place: Path, precision: str, threads: int) -> Writer:
    """Everything that a server does for each token, the characters included."""
    from serve.generation import Ask, Running
    from serve.manifest import Manifest

    manifest = Manifest.from_json((place / "model.json").read_text(encoding="utf-8"))
    running = Running(place, manifest, precision, threads)
    running._end = -1

    def write(prompts: np.ndarray, count: int) -> np.ndarray:
        rows = {}
        for row, prompt in enumerate(prompts):
            number = running.add("a", Ask(most=count))
            running._waiting[-1].tokens, running._waiting[-1].most = prompt.tolist(), count
            rows[number] = row
        made = np.zeros((len(prompts), count), np.int64)
        for at in range(count):
            owners = [row.number for row in running._owners]
            for number, token in zip(owners, running._tokens[:, 0], strict=True):
                made[rows[number], at - 1] = token
            running.step()
        return made[:, :-1]  # the last token ends a row, and nobody keeps it

    return write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/generation-benchmark"), help="for the files, 3 GB")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="append to the results")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    folder = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    model = reference(folder)
    exported, short = folder / "optimum.onnx", folder / "optimum.int8.onnx"
    if not exported.exists():
        as_optimum(reference(folder), exported)
    if not short.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(exported, short, weight_type=QuantType.QInt8)
    place = bundle(folder)
    eight = torch.ao.quantization.quantize_dynamic(linear(reference(folder)), {torch.nn.Linear}, dtype=torch.qint8)
    groups: dict[str, dict[str, Writer]] = {
        "fp32": {
            "ours": with_ours(place, "fp32", given.threads),
            "transformers": with_torch(model),
            "optimum": with_optimum(exported, given.threads),
        },
        "8 bits": {
            "ours": with_ours(place, "w8", given.threads),
            "ours, 4 bits": with_ours(place, "w4", given.threads),
            "transformers": with_torch(eight),
            "optimum": with_optimum(short, given.threads),
        },
    }
    missed = False
    for batch in given.batches:
        prompts = np.random.default_rng(batch).integers(0, VOCABULARY, (batch, given.prompt))
        for form, writers in groups.items():
            told = {name: write(prompts, given.new) for name, write in writers.items()}
            if form == "fp32":
                same = [np.mean(told[name][:, : given.new - 1] == told["ours"]) for name in ("transformers", "optimum")]
                assert min(same) > 0.98, f"other tokens than ours: {same}"
            seconds: dict[str, list[float]] = {name: [] for name in writers}
            for turn in range(given.rounds):
                for name in np.roll(list(writers), turn).tolist():  # nobody always behind the same other
                    started = time.perf_counter()
                    writers[name](prompts, given.new)
                    seconds[name].append(time.perf_counter() - started)
            for name in writers:
                if not name.startswith("ours"):
                    continue
                row: dict[str, object] = {
                    "model": "gpt2 124M, random weights", "precision": "w4" if "4" in name else {"fp32": "fp32"}.get(form, "w8"),
                    "batch": batch, "prompt": given.prompt, "new": given.new, "threads": given.threads,
                    "rounds": given.rounds, "tokens_a_second": round(batch * given.new / statistics.median(seconds[name]), 1),
                }  # fmt: skip
                for peer in ("transformers", "optimum"):
                    ratio = statistics.median(
                        theirs / own for theirs, own in zip(seconds[peer], seconds[name], strict=True)
                    )
                    row[f"{peer}_a_second"] = round(batch * given.new / statistics.median(seconds[peer]), 1)
                    row[f"times_{peer}"] = round(ratio, 2)
                    missed |= ratio < TARGET
                if given.keep:
                    append("generation", row, packages=PACKAGES)
                else:
                    print(row, flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
