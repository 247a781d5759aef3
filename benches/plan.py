"""Compares what `flamingo plan` says of memory with the peak of real training steps on the CPU (flex).

python3 benches/plan.py PROGRAM [CASE…]

makes models with random weights and shards of noise, trains each model for three steps, and prints a table in Markdown.
PROGRAM is a release build of `flamingo`. Linux only: the peak is VmHWM of /proc/PID/status. Needs nothing but Python.
"""

import base64
import io
import json
import os
import random
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
VOCABULARY = 8000
SIDE = 64
STEPS = 3


def case(d_model, layers, every, rows, tokens, **more):
    """A model and what it is trained on; the rest is as in `DEFAULTS`."""
    defaults = dict(
        family="gpt_neox", vision_width=256, heads=8, documents=0, images=3, precision="fp32", checkpointing=False,
        depth=2, ff_mult=4, vocabulary=VOCABULARY,
    )
    return defaults | dict(d_model=d_model, layers=layers, every=every, rows=rows, tokens=tokens) | more


CASES = {
    "hardly a model": case(32, 1, 1, 1, 8, vision_width=32, depth=1, vocabulary=1500),
    "frozen weights": case(1024, 16, 8, 2, 32),
    "trained weights": case(1024, 6, 1, 2, 32),
    "two streams": case(1024, 6, 1, 2, 32, documents=2),
    "two streams, checkpointed": case(1024, 6, 1, 2, 32, documents=2, checkpointing=True),
    "optimizer": case(768, 12, 1, 1, 16),
    "activations": case(512, 12, 2, 16, 256),
    "activations, checkpointed": case(512, 12, 2, 16, 256, checkpointing=True),
    "half the rows": case(512, 12, 2, 8, 256),
    "mosaic_gpt": case(512, 12, 1, 16, 192, family="mosaic_gpt"),
    "mosaic_gpt, checkpointed": case(512, 12, 1, 16, 192, family="mosaic_gpt", checkpointing=True),
    "pictures": case(256, 2, 1, 4, 32, documents=24, images=6, vision_width=512, depth=4),
    "pictures, checkpointed": case(
        256, 2, 1, 4, 32, documents=24, images=6, vision_width=512, depth=4, checkpointing=True
    ),
    "logits": case(256, 4, 2, 16, 256, vocabulary=24000),
    "logits, checkpointed": case(256, 4, 2, 16, 256, vocabulary=24000, checkpointing=True),
    "amp_bf16": case(512, 8, 2, 8, 128, precision="amp_bf16"),
    "amp_bf16, checkpointed": case(512, 8, 2, 8, 128, precision="amp_bf16", checkpointing=True),
    "amp_bf16, trained weights": case(768, 6, 1, 2, 32, precision="amp_bf16"),
    "amp_bf16, trained weights of powers of two": case(1024, 6, 1, 2, 32, precision="amp_bf16"),
}


def model_toml(c):
    ids = c["vocabulary"]
    decoder = [
        f'family = "{c["family"]}"', f'd_model = {c["d_model"]}', f'n_heads = {c["heads"]}', f'n_layers = {c["layers"]}',
        f'd_ff = {4 * c["d_model"]}', "max_positions = 512", "norm_eps = 0.00001",
    ]
    if c["family"] == "gpt_neox":
        decoder += [
            "rotary_pct = 1.0", "rotary_base = 10000.0", "parallel_residual = false", 'activation = "gelu"',
            "tied_head = false",
        ]
    else:
        decoder += ["alibi_bias_max = 8.0", "qk_norm = true"]
    return f"""name = "plan"
[tokens]
vocab_size = {ids + 3}
endofchunk = {ids}
image = {ids + 1}
pad = {ids + 2}
generation_pad = {ids}
[vision]
image_size = {SIDE}
patch_size = 8
width = {c["vision_width"]}
layers = 2
heads = 4
mlp_width = {4 * c["vision_width"]}
activation = "quick_gelu"
output_dim = 64
[resampler]
depth = {c["depth"]}
dim_head = 64
heads = 8
num_latents = 64
ff_mult = {c["ff_mult"]}
[cross_attention]
every_n_layers = {c["every"]}
dim_head = 64
heads = 8
ff_mult = {c["ff_mult"]}
only_attend_immediate_media = true
[decoder]
""" + "\n".join(decoder) + "\n"


def tokenizer(folder, size):
    """The tokenizer of a shipped model with words added that no text has."""
    folder.mkdir()
    source = ROOT / "models/flamingo-tiny-neox"
    made = json.loads((source / "tokenizer.json").read_text())
    vocabulary = made["model"]["vocab"]
    for i in range(len(vocabulary), size):
        vocabulary[f"unused {i}"] = i
    (folder / "tokenizer.json").write_text(json.dumps(made))
    (folder / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())


def noise(rng):
    """A PNG that no other is equal to."""
    rows = b"".join(b"\0" + rng.randbytes(3 * SIDE) for _ in range(SIDE))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def words(rng, tokens):
    """Text of more tokens than these."""
    return " ".join("".join(rng.choices("bcdfghjklmnpqrstvwxz", k=5)) for _ in range(tokens))


def shards(folder, c):
    """A shard of pairs and, where there are any, one of documents; all texts longer than is read."""
    rng = random.Random(0)
    samples = 4 * max(c["rows"], c["documents"])

    def write(name, parts):
        with tarfile.open(folder / name, "w") as tar:
            for i in range(samples):
                for kind, data in parts().items():
                    info = tarfile.TarInfo(f"{i:06}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))

    def document():
        images = c["images"]
        return {"json": json.dumps({
            "text_list": ["a"] * (images - 1) + [words(rng, c["tokens"])],
            "image_info": [{"image_base64": base64.b64encode(noise(rng)).decode()} for _ in range(images)],
            "similarity_matrix": [[float(i == j) for j in range(images)] for i in range(images)],
        }).encode()}

    write("pairs.tar", lambda: {"png": noise(rng), "txt": words(rng, c["tokens"]).encode()})
    if c["documents"]:
        write("documents.tar", document)


def peak(program, recipe, run):
    """Bytes that the process had at most, before it writes a checkpoint."""
    train = [program, "train", "--device", "flex", "--config", recipe]
    # What is freed goes back at once: what the allocator keeps is no need of the training.
    process = subprocess.Popen(train, env=os.environ | {"MIMALLOC_PURGE_DELAY": "0"}, stderr=subprocess.PIPE, text=True)
    lines = 0
    while lines < STEPS and process.poll() is None:
        time.sleep(0.05)
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
    if process.poll() is not None:
        sys.exit(f"the training ended: {process.stderr.read()}")
    status = Path(f"/proc/{process.pid}/status").read_text()
    process.kill()
    process.communicate()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib) * 1024


def measured(program, c, work, model):
    shards(work, c)
    recipe = work / "train.toml"
    settings = dict(
        run_name=str(work / "run"), model=str(model), laion_shards=str(work / "pairs.tar"), batch_size_laion=c["rows"],
        max_tokens_laion=c["tokens"], max_tokens_mmc4=c["tokens"], mmc4_max_num_images=c["images"],
        dataset_resampled=True, train_num_samples_laion=1000 * c["rows"], shuffle_laion=0, shuffle_mmc4=0, warmup_steps=1,
        precision=c["precision"], gradient_checkpointing=c["checkpointing"], vision_cache_mib=0, logging_steps=1,
        checkpoint_steps=0,
    )
    if c["documents"]:
        settings |= dict(
            mmc4_shards=str(work / "documents.tar"), batch_size_mmc4=c["documents"],
            train_num_samples_mmc4=1000 * c["documents"],
        )
    recipe.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return peak(program, recipe, work / "run")


def planned(program, c, model):
    """What is in use at the fullest moment, and what trains, in bytes."""
    args = [
        program, "plan", "--json", "--model", model, "--devices", "1", "--precision", c["precision"],
        "--batch-size-laion", c["rows"], "--max-tokens-laion", c["tokens"], "--batch-size-mmc4", c["documents"],
        "--max-tokens-mmc4", c["tokens"], "--images-mmc4", c["images"], "--mmc4-max-num-images", c["images"],
        "--vision-cache-mib", "0",
    ]
    found = json.loads(subprocess.run([str(arg) for arg in args], check=True, capture_output=True).stdout)
    memory = found["ways"][c["checkpointing"]]["memory"]
    return memory["in_use"], memory["trained_weights"]


def main():
    program, only = sys.argv[1], sys.argv[2:]
    base = None
    for name, c in CASES.items():
        if base is not None and only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            tokenizer(work / "tokenizer", c["vocabulary"])
            (work / "model.toml").write_text(model_toml(c))
            init = [program, "init", "--config", work / "model.toml", "--tokenizer", work / "tokenizer", "--out"]
            subprocess.run([*init, work / "model"], check=True, stdout=subprocess.DEVNULL)
            peak = measured(program, c, work, work / "model") / MIB
            in_use, trained = (size / MIB for size in planned(program, c, work / "model"))
        # Weights that train are in the mapped file, too.
        if base is None:
            base = peak - in_use - trained
            print(f"A process with hardly a model: {base:.0f} MiB.\n")
            print("| case | in use, planned | and trained weights in their file, and a process | measured | off by |")
            print("|---|---|---|---|---|", flush=True)
            continue
        whole = in_use + trained + base
        print(f"| {name} | {in_use:.0f} | {whole:.0f} | {peak:.0f} | {100 * (whole / peak - 1):+.1f} % |", flush=True)


if __name__ == "__main__":
    main()
