"""The README's table of peers, from what run.py has written.

    report.py RESULTS.json ...                print all of it
    report.py RESULTS.json ... --into FILE    put the best of each, a line a workload, between the lines <!-- peers -->
                                              and <!-- /peers --> of FILE
"""

import argparse
import json

TITLES = {
    "train": "training step, {tokens} tokens, LoRA r {rank} on all linear layers",
    "train-checkpointing": "the same with gradient checkpointing",
    "prompt": "prompt of {tokens} tokens",
    "generation": "generation of {generate} tokens",
    "start": "from starting the program to the first step",
    "products": "a product of rows x outputs x inputs",
}
# What a workload is judged by: the key in its rows, whether more is better, how it is written, its unit.
TOKENS = ("tokens_per_second", True, "{:.1f}", "tokens/s")
MEASURES = {"start": ("seconds_to_first_step", False, "{:.2f}", "s"), "products": ("gflops", True, "{:.1f}", "GFLOP/s")}


def bytes_text(n):
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def measure_of(r):
    return MEASURES.get(r["workload"], TOKENS)


def speed_text(workload, values):
    key, _, form, unit = MEASURES.get(workload, TOKENS)
    return f"{form.format(values[key])} {unit}"


def median(r):
    return r[measure_of(r)[0]]["median"]


def short_speed(r):
    key, _, form, unit = measure_of(r)
    return f"{median(r):.0f}" if unit == "tokens/s" else f"{form.format(median(r))} {unit}"


def times_as_fast(r, other):
    return median(r) / median(other) if measure_of(r)[1] else median(other) / median(r)


def row(r, peer):
    name = r["contender"]
    if "error" in r:
        return f"| {name} | does not run | | | |"
    key, _, form, _ = measure_of(r)
    speed = "{} ({} to {})".format(*(form.format(r[key][k]) for k in ("median", "least", "most")))
    ratio = f"{times_as_fast(r, peer):.2f}" if peer else ""
    limit = f"{r['percent_of_limit']['median']:.0f} %" if "percent_of_limit" in r else ""
    memory = bytes_text(r["peak_rss"]["median"]) if "peak_rss" in r else ""
    return f"| {name} | {speed} | {ratio} | {limit} | {memory} |"


def conditions(j):
    m, s = j["machine"], j["setting"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    return (f"{m['cpu']}, {m['threads']} threads, {bytes_text(m['memory'])} of memory ({', '.join(m['instructions'])}); "
            f"{versions}; random weights in the models' shapes, the same for all")


def groups(j):
    """(shape, workload) -> the rows, in order."""
    found = {}
    for r in j["results"]:
        found.setdefault((r["shape"], r["workload"]), []).append(r)
    return found


def fastest(rows, ours):
    able = [r for r in rows if "error" not in r and r["contender"].startswith("nibble") == ours]
    return max(able, key=lambda r: median(r) if measure_of(r)[1] else -median(r), default=None)


def table(j):
    s = j["setting"]
    lines = [f"{conditions(j)}. Medians of {s['rounds']} rounds in which all take turns, with the least and the most."]
    for (shape, workload), rows in groups(j).items():
        peer = fastest(rows, False)
        lines += ["", f"**{shape}: {TITLES[workload].format(**s)}**", "",
                  f"| | {measure_of(rows[0])[3]} | times the best peer's speed | of the limit | peak memory |",
                  "|---|---:|---:|---:|---:|"]
        lines += [row(r, peer) for r in rows]
    return "\n".join(lines)


def summary(files):
    speed = "tokens/s, or time"
    lines = [f"{conditions(files[0])}. The fastest of each; medians of rounds in which all take turns.", "",
             f"| | rounds | nibble | {speed} | memory | best peer | {speed} | memory | times as fast | of the limit |",
             "|---|---:|---|---:|---:|---|---:|---:|---:|---:|"]
    for j in files:
        only = j["setting"].get("instructions", "all")
        for (shape, workload), rows in groups(j).items():
            if workload == "products":
                continue
            ours, peer = fastest(rows, True), fastest(rows, False)
            title = f"{shape}: {TITLES[workload].format(**j['setting'])}" + ("" if only == "all" else f", {only} only")
            cells = [title, str(j["setting"]["rounds"])]
            for r in (ours, peer):
                cells += [r["contender"], short_speed(r), bytes_text(r["peak_rss"]["median"])] if r else ["none", "", ""]
            share = f"{ours['percent_of_limit']['median']:.0f} %" if ours and "percent_of_limit" in ours else ""
            ratio = f"{times_as_fast(ours, peer):.2f}" if ours and peer else ""
            lines.append("| " + " | ".join(cells + [ratio, share]) + " |")
    return "\n".join(lines + product_table(files))


def product_table(files):
    """A line for each size and direction; empty without any."""
    lines = []
    for j in files:
        for (size, workload), rows in groups(j).items():
            found = {r["contender"]: r for r in rows if "error" not in r}
            if workload != "products" or "nibble bf16" not in found:
                continue
            bf16, nf4 = found["nibble bf16"], found.get("nibble nf4")
            cells = [size]
            for r in (bf16, nf4):
                share = f" ({r['percent_of_limit']['median']:.0f} %)" if r and "percent_of_limit" in r else ""
                cells.append(f"{median(r):.0f}{share}" if r else "")
            cells.append(f"{times_as_fast(nf4, bf16):.2f}" if nf4 else "")
            for name in ("OpenBLAS", "PyTorch"):
                peer = next((r for n, r in found.items() if n.startswith(name)), None)
                cells += [f"{median(peer):.0f}", f"{times_as_fast(bf16, peer):.2f}"] if peer else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return []
    return ["", "Products of rows x outputs x inputs in GFLOP/s (of the peak of multiply-adds measured beside them).", "",
            "| | nibble bf16 | nibble NF4 | NF4 of bf16 | OpenBLAS f32 | bf16 is times that | PyTorch (oneDNN) bf16 | "
            "bf16 is times that |", "|---|---:|---:|---:|---:|---:|---:|---:|"] + lines


def main():
    p = argparse.ArgumentParser()
    p.add_argument("results", nargs="+")
    p.add_argument("--into")
    args = p.parse_args()
    files = []
    for path in args.results:
        with open(path) as f:
            files.append(json.load(f))
    if not args.into:
        print("\n\n".join(table(j) for j in files))
        return
    text = summary(files)
    with open(args.into) as f:
        old = f.read()
    begin, end = "<!-- peers -->\n", "<!-- /peers -->"
    if old.count(begin) != 1 or old.count(end) != 1:
        raise SystemExit(f"{args.into}: one line <!-- peers --> and one line <!-- /peers --> are needed")
    head, rest = old.split(begin)
    with open(args.into, "w") as f:
        f.write(head + begin + text + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
