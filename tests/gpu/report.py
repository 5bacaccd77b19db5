#!/usr/bin/env python3
"""What the rows of runs on a GPU say: report.py rows.jsonl... tests/gpu/README.md says what a row means."""

import json
import sys

# Dense bf16 operations a second that the maker states (data sheets of H100 SXM, H200 SXM, A100 SXM): MFU's denominator.
STATED = {"H200": 989.5e12, "H100": 989.5e12, "A100": 312e12}


def fold(rows, kind):
    return [r for r in rows if r["row"] == kind]


def checks(rows):
    all_checks = fold(rows, "check")
    if not all_checks:
        return
    failed = [r for r in all_checks if r["status"] != "ok"]
    print(f"checks: {len(all_checks)}, failed {len(failed)}")
    for r in failed:
        print(f"    {r['family']}/{r['name']} ({r['compute']}): {r.get('why', '')[:200]}")


def large(rows):
    compared = fold(rows, "large")
    if compared:
        print(f"at large shapes against the processor: {len(compared)} kernels, "
              f"failed {sum(r['status'] != 'ok' for r in compared)}")
    for r in compared:
        if r["status"] != "ok":
            print(f"    {r['model']} {r['kernel']} {r['shape']}: error {r['error']} {r.get('why', '')}")


def kernels(rows):
    for r in fold(rows, "kernel"):
        if "why" in r:
            print(f"{r['model']:14} {r['kernel']:18} {r['shape']:38} {r['why']}")
        elif r["model"] == "ceiling":
            print(f"ceiling: {r['kernel']} {r['shape']}: {r['gb_s']:.0f} GB/s, {r['tflop_s']:.0f} TFLOP/s")
        else:
            print(f"{r['model']:14} {r['kernel']:18} {r['products']:12} {r['shape']:38} {r['us']:9.1f} us {r['gb_s']:6.0f} GB/s "
                  f"{r['tflop_s']:6.1f} TFLOP/s {100 * r['of_floor']:4.0f} % of its floor ({r['floor_by']})")


def steps(rows):
    """Each of nibble's steps, and behind it those of its peers in the same setting."""
    ceiling = [r["tflop_s"] * 1e12 for r in fold(rows, "kernel") if r["model"] == "ceiling" and r["kernel"] == "gemm"]
    ours = None
    for r in fold(rows, "step") + fold(rows, "agreement"):
        r["at"] = rows.index(r)
    for r in sorted(fold(rows, "step") + fold(rows, "agreement"), key=lambda r: r["at"]):
        if r["row"] == "agreement":
            print(f"    {r['by']}: gradients differ by {r['gradient_error']:.2e} (least cosine {r['worst_cosine']:.6f}), "
                  f"losses by {r.get('worst_loss_error', float('nan')):.2e}")
            continue
        line = (f"{r['model']:13} {r['by']:32} {r['format']:5} {r['tokens']:.0f} tokens in {r['docs']:.0f}, checkpointing "
                f"{r['checkpoint']:3}: {r['tokens_s']:8.0f} tokens/s")
        if r.get("allocated"):
            line += f", {r['allocated'] / 2**30:5.1f} GiB"
        if r["by"] == "nibble":
            ours = r
            for name, rate in STATED.items():
                if name in r["device"]:
                    line += f", MFU {100 * r['tflop_s'] * 1e12 / rate:.0f} % of the stated {rate / 1e12:.0f} TFLOP/s"
            if ceiling:
                line += f", {100 * r['tflop_s'] * 1e12 / ceiling[-1]:.0f} % of the measured product"
        elif ours:
            line += f": nibble {ours['tokens_s'] / r['tokens_s']:.2f} times as fast"
            if r.get("allocated") and ours.get("allocated"):
                line += f", in {ours['allocated'] / r['allocated']:.2f} of its memory"
        print(line)


def operations(rows):
    for r in fold(rows, "operation"):
        print(f"{r['model']:14} {r['name']:20} {r['forward_ms']:8.2f} ms forward {r.get('backward_ms', 0):8.2f} ms backward "
              f"{100 * r['share']:4.0f} %")


def main():
    rows = [json.loads(line) for path in sys.argv[1:] for line in open(path) if line.startswith("{")]
    for r in fold(rows, "machine"):
        print(f"{r['gpu']}; {r['nvcc']}; {r['cores']} cores, {r['memory']}; {r['python']}")
    checks(rows)
    large(rows)
    for r in fold(rows, "sanitize"):
        print(f"compute-sanitizer {r.get('tool', '')} {r.get('family', '')}: {r['status']} {r.get('why', '')}")
    kernels(rows)
    for r in fold(rows, "train"):
        print(f"train: {r['status']} {r.get('why', '')}: {r.get('steps')} steps, losses at most {r.get('worst_loss_error')} "
              "from the processor's")
    operations(rows)
    steps(rows)
    for r in fold(rows, "stage") + fold(rows, "comparison"):
        if r["status"] != "ok":
            print(f"{r.get('name', r.get('model'))}: {r['status']} {r.get('why', '')}")
    for r in fold(rows, "error"):
        print(f"error: {r['what']}: {r['why']}")


if __name__ == "__main__":
    main()
