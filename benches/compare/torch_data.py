"""Times webdataset, Pillow and open_clip's training-free transform on a shard of captioned pictures, in one process.

What upstream's train/data.py does to LAION, without its shuffling. Prints one JSON object.
"""

import argparse
import json
import statistics
import time

import torch
import webdataset as wds
from open_clip.transform import image_transform


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--side", type=int, default=224)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transform = image_transform(args.side, is_train=False)
    rates = []
    for i in range(4):
        data = wds.WebDataset(args.shard).decode("pilrgb").to_tuple("jpg", "txt").map_tuple(transform, str.strip)
        data = data.batched(20)
        start = time.perf_counter()
        count = sum(len(texts) for _, texts in data)
        if i:
            rates.append(count / (time.perf_counter() - start))
    print(json.dumps({"images_per_second": round(statistics.median(rates), 1), "webdataset": wds.__version__}))


if __name__ == "__main__":
    main()
