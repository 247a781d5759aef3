"""Evaluates flamingo-tiny-neox twice, by `flamingo eval` and by upstream's PyTorch, and compares answers and speed.

The questions, prompts and pictures are those that `flamingo eval` wrote down; upstream's `Flamingo.generate` answers
them in batches, pictures decoded and transformed for each prompt, as open_flamingo/eval does. Prints one JSON object.
"""

import argparse
import json
import subprocess
import tempfile
import time
import tomllib
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

import torch_bench


def per_head(x, heads):
    """Queries, keys and values of GPT-NeoX stand together head by head; here one after the other."""
    return x.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def build(folder):
    """Upstream's Flamingo with the weights of a model folder (GPT-NeoX only)."""
    from open_flamingo.src import flamingo as upstream
    from open_flamingo.src import flamingo_lm, helpers

    shape = tomllib.loads((folder / "model.toml").read_text())
    resampler, cross = shape["resampler"], shape["cross_attention"]

    # Upstream fixes these numbers; the classes take any.
    class Resampler(helpers.PerceiverResampler):
        def __init__(self, *, dim):
            super().__init__(dim=dim, **{k: resampler[k] for k in ("depth", "dim_head", "heads", "num_latents", "ff_mult")})

    class Block(helpers.GatedCrossAttentionBlock):
        def __init__(self, *, dim, dim_visual):
            super().__init__(dim=dim, dim_visual=dim_visual, **{k: cross[k] for k in ("dim_head", "heads", "ff_mult")})

    upstream.PerceiverResampler = Resampler
    flamingo_lm.GatedCrossAttentionBlock = Block
    model = torch_bench.build(shape)

    ours = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    heads = shape["decoder"]["n_heads"]
    state = {}

    def put(theirs, name, change=lambda x: x):
        for leaf in ("weight", "bias"):
            if f"{name}.{leaf}" in ours:
                state[f"{theirs}.{leaf}"] = change(ours.pop(f"{name}.{leaf}"))

    visual, vision = "vision_encoder", shape["vision"]
    state[f"{visual}.class_embedding"] = ours.pop("vision.class_embedding")
    state[f"{visual}.positional_embedding"] = ours.pop("vision.position_embedding")
    state[f"{visual}.proj"] = ours.pop("vision.proj.weight").T
    put(f"{visual}.conv1", "vision.patch_embedding", lambda x: x.unflatten(1, (3, vision["patch_size"], -1)))
    put(f"{visual}.ln_pre", "vision.norm_pre")
    put(f"{visual}.ln_post", "vision.norm_post")
    for i in range(vision["layers"]):
        theirs, name = f"{visual}.transformer.resblocks.{i}", f"vision.blocks.{i}"
        for leaf in ("weight", "bias"):
            state[f"{theirs}.attn.in_proj_{leaf}"] = ours.pop(f"{name}.attention.qkv.{leaf}")
        for a, b in [("attn.out_proj", "attention.out"), ("mlp.c_fc", "mlp.up"), ("mlp.c_proj", "mlp.down"),
                     ("ln_1", "norm_1"), ("ln_2", "norm_2")]:
            put(f"{theirs}.{a}", f"{name}.{b}")

    def feed_forward(theirs, name):
        for a, b in [("0", "norm"), ("1", "up"), ("3", "down")]:
            put(f"{theirs}.{a}", f"{name}.{b}")

    state["perceiver.latents"] = ours.pop("resampler.latents")
    put("perceiver.norm", "resampler.norm")
    for i in range(resampler["depth"]):
        theirs, name = f"perceiver.layers.{i}", f"resampler.layers.{i}"
        for part in ("norm_media", "norm_latents", "to_q", "to_kv", "to_out"):
            put(f"{theirs}.0.{part}", f"{name}.attention.{part}")
        feed_forward(f"{theirs}.1", f"{name}.feed_forward")

    lm = "lang_encoder"
    embedding = torch.cat([ours.pop("decoder.embedding.base"), ours.pop("decoder.embedding.added")])
    state[f"{lm}.gpt_neox.embed_in.weight"] = embedding
    put(f"{lm}.embed_out", "decoder.head")
    put(f"{lm}.gpt_neox.final_layer_norm", "decoder.norm")
    for i in range(shape["decoder"]["n_layers"]):
        layer, name = f"{lm}.gpt_neox.layers.{i}", f"decoder.blocks.{i}"
        put(f"{layer}.decoder_layer.attention.query_key_value", f"{name}.attention.qkv", lambda x: per_head(x, heads))
        for a, b in [("attention.dense", "attention.out"), ("mlp.dense_h_to_4h", "mlp.up"),
                     ("mlp.dense_4h_to_h", "mlp.down"), ("input_layernorm", "norm_1"),
                     ("post_attention_layernorm", "norm_2")]:
            put(f"{layer}.decoder_layer.{a}", f"{name}.{b}")
        gated = f"cross_attention.{i}"
        if f"{gated}.attention_gate" in ours:
            theirs = f"{layer}.gated_cross_attn_layer"
            state[f"{theirs}.attn_gate"] = ours.pop(f"{gated}.attention_gate")
            state[f"{theirs}.ff_gate"] = ours.pop(f"{gated}.feed_forward_gate")
            for part in ("norm", "to_q", "to_kv", "to_out"):
                put(f"{theirs}.attn.{part}", f"{gated}.attention.{part}")
            feed_forward(f"{theirs}.ff", f"{gated}.feed_forward")
    if ours:
        raise SystemExit(f"tensors without a place: {sorted(ours)}")
    missing, unexpected = model.load_state_dict(state, strict=False)
    # Upstream holds each layer twice, under a second name, and rotary tables and causal masks are no weights.
    again = ("gated_cross_attn_layers.", "old_decoder_blocks.")
    tables = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "attention.bias",
              "attention.masked_bias")
    missing = [name for name in missing if not name.endswith(tables) and not any(part in name for part in again)]
    if missing or unexpected:
        raise SystemExit(f"missing {missing}, unexpected {unexpected}")
    return model, shape


def tokenizer_of(folder):
    from transformers import PreTrainedTokenizerFast

    # The library of upstream's time wants merges as texts.
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(content, file)
        file.flush()
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=file.name, padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    return tokenizer


@torch.inference_mode()
def answers(model, shape, tokenizer, questions, batch_size, max_new_tokens, num_beams):
    """What upstream's EvalModel.get_outputs returns (open_flamingo/eval/models/open_flamingo.py)."""
    from open_clip.transform import image_transform

    transform = image_transform(shape["vision"]["image_size"], is_train=False)
    out = []
    for first in range(0, len(questions), batch_size):
        batch = questions[first : first + batch_size]
        pictures = [
            [Image.open(path) for path in question["demonstration_images"] + [question["image"]]] for question in batch
        ]
        most = max(map(len, pictures))
        side = shape["vision"]["image_size"]
        vision_x = torch.zeros(len(batch), most, 1, 3, side, side)
        for i, row in enumerate(pictures):
            for j, picture in enumerate(row):
                vision_x[i, j, 0] = transform(picture)
        text = tokenizer([question["prompt"] for question in batch], padding="longest", return_tensors="pt")
        ids = model.generate(
            vision_x, text["input_ids"], text["attention_mask"], min_new_tokens=0, max_new_tokens=max_new_tokens,
            num_beams=num_beams, length_penalty=0.0,
        )
        out += tokenizer.batch_decode(ids[:, text["input_ids"].shape[1] :], skip_special_tokens=True)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flamingo", default="target/release/flamingo", help="the program")
    parser.add_argument("--model", type=Path, default=Path("models/flamingo-tiny-neox"))
    parser.add_argument("--task", default="experiments/tiny/colour.toml")
    parser.add_argument("--data", default="data/eval/tasks")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--num-samples", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()

    task = tomllib.loads(Path(args.task).read_text())
    generate = task["answer"]["generate"]
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        subprocess.run(
            [args.flamingo, "eval", "--device", "flex", "--model", str(args.model), "--task", args.task, "--data",
             args.data, "--shots", str(args.shots), "--num-samples", str(args.num_samples), "--batch-size",
             str(args.batch_size), "--out", out, "--json"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        ours_s = time.perf_counter() - start
        file = Path(out) / "predictions" / f"{task['name']}-random-{args.shots}-42.jsonl"
        questions = [json.loads(line) for line in file.read_text().splitlines()]

    model, shape = build(args.model)
    tokenizer = tokenizer_of(args.model)
    start = time.perf_counter()
    theirs = answers(model, shape, tokenizer, questions, args.batch_size, generate["max_new_tokens"],
                     generate.get("num_beams", 1))
    theirs_s = time.perf_counter() - start
    different = [
        {"id": question["id"], "ours": question["generated"], "theirs": text}
        for question, text in zip(questions, theirs) if question["generated"] != text
    ]
    print(json.dumps({
        "task": task["name"], "shots": args.shots, "questions": len(questions), "batch_size": args.batch_size,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "flamingo_questions_per_s": len(questions) / ours_s, "torch_questions_per_s": len(questions) / theirs_s,
        "ratio": theirs_s / ours_s, "different": len(different), "first_different": different[:3],
    }, indent=1))


if __name__ == "__main__":
    main()
