"""Times a training step of upstream's PyTorch OpenFlamingo, with random weights of a given shape.

The step is that of upstream's train/train_utils.py for one stream: forward, backward, the mask of the embeddings'
gradients, clipping, AdamW over its two parameter groups. Prints one JSON object.
"""

import argparse
import json
import os

import torch
from torch_bench import build, median_ms, peak_rss_mib, prompt, read_shape


def trainable(model):
    """What upstream trains (src/factory.py), in train.py's two groups."""
    model.perceiver.requires_grad_(True)
    model.lang_encoder.gated_cross_attn_layers.requires_grad_(True)
    model.lang_encoder.get_input_embeddings().requires_grad_(True)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decay = [p for name, p in named if "gated_cross_attn" in name]
    rest = [p for name, p in named if "gated_cross_attn" not in name]
    return [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True, help="the path of a model.toml")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16 is upstream's amp_bf16: autocast")
    parser.add_argument("--checkpointing", action="store_true", help="recompute each layer, as upstream's option does")
    args = parser.parse_args()
    args.batch = args.rows

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.device != "cpu":
        torch.cuda.set_device(args.device)
    shape = read_shape(args.shape, None)
    with torch.device(args.device):
        model = build(shape).train()
    if args.device != "cpu":  # what building it took does not count
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if args.checkpointing:
        from torch.utils.checkpoint import checkpoint

        for layer in model.lang_encoder._get_decoder_layers():
            plain = layer.forward
            layer.forward = lambda *a, plain=plain, **kw: checkpoint(plain, *a, use_reentrant=False, **kw)
    groups = trainable(model)
    optimizer = torch.optim.AdamW(groups, lr=1e-4)

    side = shape["vision"]["image_size"]
    vision_x = torch.randn(args.batch, args.images, 1, 3, side, side, device=args.device)
    ids = prompt(args, shape).to(args.device)
    labels = ids.masked_fill(ids == shape["tokens"]["image"], -100)
    mask = torch.ones_like(ids)
    kept = [shape["tokens"]["image"], shape["tokens"]["endofchunk"]]

    def gradients():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(args.device.split(":")[0], dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            # The layers need their media again where they are recomputed.
            loss = model(
                vision_x=vision_x, lang_x=ids, attention_mask=mask, labels=labels, clear_conditioned_layers=False
            )[0]
        loss.backward()

    def update():
        table = model.lang_encoder.get_input_embeddings().weight
        zero = torch.zeros_like(table.grad)
        zero[kept] = 1.0
        table.grad *= zero
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    gradients_ms, _ = median_ms(gradients, args.runs, 1)
    update_ms, _ = median_ms(update, args.runs, 1)

    def step():
        gradients()
        update()

    step_ms, _ = median_ms(step, args.runs, 1)
    report = {"gradients_ms": gradients_ms, "update_ms": update_ms, "step_ms": step_ms, "peak_rss_mib": peak_rss_mib()}
    if args.device != "cpu":
        report["peak_device_mib"] = torch.cuda.max_memory_reserved() / 2**20
    print(json.dumps({key: round(value, 3) for key, value in report.items()} | {"torch": torch.__version__}))


if __name__ == "__main__":
    main()
