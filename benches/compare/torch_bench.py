"""Times upstream's PyTorch OpenFlamingo, with random weights of a given shape.

The model is put together from upstream's own classes and nothing is downloaded. Prints one JSON object;
README.md says how to install what this needs and what each number covers.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import torch

MODELS = Path(__file__).resolve().parents[2] / "models"

# The shape is a model.toml, or the same as JSON. These two are the zoo's own files.
NAMED = {"3b": MODELS / "openflamingo-3b" / "model.toml", "opt-1.3b": MODELS / "openflamingo-opt-1.3b" / "model.toml"}

TINY = {
    "name": "tiny",
    "tokens": {"vocab_size": 128, "endofchunk": 125, "image": 126},
    "vision": {"image_size": 56, "patch_size": 14, "width": 64, "layers": 2, "heads": 2, "mlp_width": 256,
               "activation": "quick_gelu", "output_dim": 32},
    "cross_attention": {"every_n_layers": 1},
    "decoder": {"family": "mpt", "d_model": 64, "n_heads": 4, "n_layers": 2, "d_ff": 256, "max_positions": 2048,
                "alibi_bias_max": 8.0, "norm_eps": 1e-5},
}

# What upstream's Flamingo builds whatever it is asked for (src/flamingo.py, src/helpers.py).
FIXED = {
    "resampler": {"depth": 6, "dim_head": 64, "heads": 8, "num_latents": 64, "ff_mult": 4},
    "cross_attention": {"dim_head": 64, "heads": 8, "ff_mult": 4, "only_attend_immediate_media": True},
}


def read_shape(name, layers):
    """The shape as a dictionary, its towers cut to at most `layers` blocks."""
    if name == "tiny":
        shape = TINY
    else:
        path = NAMED.get(name, Path(name))
        text = path.read_text()
        shape = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    for section, values in FIXED.items():
        for key, value in values.items():
            if shape.get(section, {}).get(key, value) != value:
                raise SystemExit(f"{name}: upstream cannot build {section}.{key} = {shape[section][key]}, only {value}")
    if layers is not None:
        for tower, key in [("vision", "layers"), ("decoder", "n_layers")]:
            shape[tower][key] = min(shape[tower][key], layers)
    return shape


def build_clip(v):
    """open_clip's CLIP with the vision tower of `v`. Flamingo never touches the text tower: it is tiny."""
    from open_clip.model import CLIP

    vision = {
        "image_size": v["image_size"],
        "patch_size": v["patch_size"],
        "width": v["width"],
        "layers": v["layers"],
        "head_width": v["width"] // v["heads"],
        "mlp_ratio": v["mlp_width"] / v["width"],
    }
    text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
    clip = CLIP(v["output_dim"], vision, text, quick_gelu=v["activation"] == "quick_gelu")
    clip.visual.output_tokens = True  # upstream src/factory.py:48
    return clip


def build_language_model(d, vocab_size):
    """A transformers language model and the attribute path of its blocks."""
    import transformers as hf

    family = d["family"]
    if family in ("mpt", "mosaic_gpt"):
        # MPT-1B's own code is not in transformers: MPT-7B's class stands in, without the norm of queries and keys.
        if d["d_ff"] != 4 * d["d_model"]:
            raise SystemExit("transformers' MPT has d_ff = 4 d_model, always")
        config = hf.MptConfig(
            d_model=d["d_model"], n_heads=d["n_heads"], n_layers=d["n_layers"], max_seq_len=d["max_positions"],
            vocab_size=vocab_size, layer_norm_epsilon=d["norm_eps"],
            attn_config={"alibi_bias_max": d["alibi_bias_max"]},
        )
        return hf.MptForCausalLM(config), "transformer.blocks"
    if family == "gpt_neox":
        config = hf.GPTNeoXConfig(
            hidden_size=d["d_model"], num_attention_heads=d["n_heads"], num_hidden_layers=d["n_layers"],
            intermediate_size=d["d_ff"], max_position_embeddings=d["max_positions"], vocab_size=vocab_size,
            rotary_pct=d["rotary_pct"], rotary_emb_base=d["rotary_base"], use_parallel_residual=d["parallel_residual"],
            hidden_act=d["activation"], layer_norm_eps=d["norm_eps"],
        )
        return hf.GPTNeoXForCausalLM(config), "gpt_neox.layers"
    if family == "opt":
        config = hf.OPTConfig(
            hidden_size=d["d_model"], num_attention_heads=d["n_heads"], num_hidden_layers=d["n_layers"],
            ffn_dim=d["d_ff"], max_position_embeddings=d["max_positions"], vocab_size=vocab_size,
            word_embed_proj_dim=d["word_embed_proj_dim"], do_layer_norm_before=d["pre_norm"],
            activation_function=d["activation"],
        )
        return hf.OPTForCausalLM(config), "model.decoder.layers"
    raise SystemExit(f"family {family} is not among mosaic_gpt, mpt, gpt_neox, opt")


def build(shape):
    """Upstream's Flamingo, assembled as its src/factory.py does after the downloads."""
    from open_flamingo.src.flamingo import Flamingo
    from open_flamingo.src.flamingo_lm import FlamingoLMMixin
    from open_flamingo.src.utils import extend_instance

    tokens = shape["tokens"]
    language_model, blocks = build_language_model(shape["decoder"], tokens["vocab_size"])
    extend_instance(language_model, FlamingoLMMixin)
    language_model.set_decoder_layers_attr_name(blocks)
    model = Flamingo(
        build_clip(shape["vision"]),
        language_model,
        tokens["endofchunk"],
        tokens["image"],
        vis_dim=shape["vision"]["width"],
        cross_attn_every_n_layers=shape["cross_attention"]["every_n_layers"],
    )
    for layer in model.lang_encoder.gated_cross_attn_layers:
        if layer is not None:  # closed gates would cost the same, but nobody runs a model like that
            layer.attn_gate.data.fill_(0.5)
            layer.ff_gate.data.fill_(0.5)
    return model.requires_grad_(False).eval()


def median_ms(run, runs, warmup):
    """The median time of `run` in milliseconds, and the last result."""
    times = []
    for i in range(warmup + runs):
        start = time.perf_counter()
        result = run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        if i >= warmup:
            times.append(elapsed * 1e3)
    return statistics.median(times), result


def machine_rates(device):
    """What the GPU does at best: bytes read and written a second by a copy, operations of a bf16 product."""
    source, target = (torch.empty(2**30, dtype=torch.uint8, device=device).random_() for _ in range(2))
    copy_ms, _ = median_ms(lambda: target.copy_(source), 10, 3)
    side = 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product_ms, _ = median_ms(lambda: a @ b, 10, 3)
    return {"copy_bytes_per_second": 2 * 2**30 / copy_ms * 1e3, "product_flops_per_second": 2 * side**3 / product_ms * 1e3}


def peak_rss_mib():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def prompt(args, shape):
    """Random ids, `<image>` at the start of each of `args.images` equal parts, nothing padded."""
    ids = torch.randint(2, shape["tokens"]["endofchunk"], (args.batch, args.tokens))
    for i in range(args.images):
        ids[:, i * args.tokens // args.images] = shape["tokens"]["image"]
    return ids


@torch.inference_mode()
def bench(model, shape, args):
    side = shape["vision"]["image_size"]
    precision = next(model.parameters()).dtype
    vision_x = torch.randn(args.batch, args.images, 1, 3, side, side, device=args.device, dtype=precision)
    ids = prompt(args, shape).to(args.device)
    mask = torch.ones_like(ids)
    lm = model.lang_encoder

    def vision():
        return model.vision_encoder(vision_x.flatten(0, 2))[1]

    vision_ms, features = median_ms(vision, args.runs, args.warmup)
    features = features.unflatten(0, (args.batch, args.images, 1))
    resampler_ms, latents = median_ms(lambda: model.perceiver(features), args.runs, args.warmup)

    # What Flamingo.generate does around the language model (src/flamingo.py:163-181).
    lm._use_cached_vision_x = True
    for layer in lm._get_decoder_layers():
        layer.condition_vis_x(latents)

    prefill_ms, first = median_ms(lambda: lm(input_ids=ids, attention_mask=mask, use_cache=True), args.runs, args.warmup)

    def decode():
        output, seen = first, mask
        for _ in range(args.decode):
            scores = output.logits[:, -1]
            scores[:, model.media_token_id] = float("-inf")  # a generated <image> would move the cached media
            token = scores.argmax(-1, keepdim=True)
            seen = torch.cat([seen, torch.ones_like(token)], dim=1)
            output = lm(input_ids=token, attention_mask=seen, past_key_values=output.past_key_values, use_cache=True)

    decode_ms, _ = median_ms(decode, args.runs, args.warmup)
    lm.clear_conditioned_layers()
    lm._use_cached_vision_x = False

    timings = {
        "vision_ms": vision_ms,
        "resampler_ms": resampler_ms,
        "prefill_ms": prefill_ms,
        "decode_ms_per_token": decode_ms / args.decode,
    }
    if args.generate:

        def generate():
            return model.generate(
                vision_x, ids, attention_mask=mask, num_beams=args.beams, max_new_tokens=args.decode,
                min_new_tokens=args.decode, bad_words_ids=[[model.media_token_id]], do_sample=False,
                pad_token_id=model.eoc_token_id, use_cache=True,
            )

        timings["generate_ms"], output = median_ms(generate, args.runs, args.warmup)
        assert output.shape[1] == args.tokens + args.decode
    return timings


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", help="tiny, 3b, opt-1.3b, or the path of a model.toml or .json")
    parser.add_argument("--layers", type=int, help="cut the decoder and the vision tower to at most so many blocks")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--images", type=int, default=1, help="pictures in each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of the prompt, <image> included")
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5, help="the median of so many runs is printed")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16 is upstream's precision bf16")
    parser.add_argument("--generate", action="store_true", help="also time upstream's generate, end to end")
    parser.add_argument("--beams", type=int, default=1, help="beams of --generate")
    parser.add_argument("--machine", action="store_true", help="on a GPU: also what it copies and multiplies at best")
    args = parser.parse_args()
    for name in ["batch", "images", "decode", "runs", "threads"]:
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.tokens < args.images:
        parser.error("--tokens must leave room for an <image> a picture")

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.device != "cpu":
        torch.cuda.set_device(args.device)
    shape = read_shape(args.shape, args.layers)
    with torch.device(args.device):
        model = build(shape)
    if args.dtype == "bf16":
        model = model.bfloat16()
    if args.device != "cpu":  # what building it took does not count
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    timings = bench(model, shape, args)

    report = {key: round(value, 3) for key, value in timings.items()}
    report["peak_rss_mib"] = round(peak_rss_mib(), 1)
    if args.device != "cpu":
        report["peak_device_mib"] = round(torch.cuda.max_memory_reserved() / 2**20, 1)
        if args.machine:
            report.update(machine_rates(args.device))
    report["config"] = {
        "shape": shape["name"],
        **{key: value for key, value in vars(args).items() if key != "shape"},
        "decoder": shape["decoder"],
        "vision": shape["vision"],
        "cross_attn_every_n_layers": shape["cross_attention"]["every_n_layers"],
        "parameters": sum(p.numel() for p in model.parameters()),
        **{name: version(name) for name in ["torch", "transformers", "open_clip_torch", "open_flamingo"]},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
