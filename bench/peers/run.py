"""Measures nibble and its peers side by side: every contender of a workload takes its turn, round after round, so that
what else the machine does meets all of them alike. Writes bench/results/peers-CPU.json; report.py makes the table.

    run.py --nibble PATH [--shapes NAME,...] [--workloads NAME,...] [--rounds N] [--out FILE]
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

import models
import products
import report

HERE = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.dirname(os.path.dirname(HERE))
PACKAGES = ["torch", "transformers", "peft", "bitsandbytes", "llama-cpp-python"]
# What each contender calls the instructions of a lesser processor; the whole run is kept to them.
INSTRUCTIONS = {
    "all": {},
    "avx512": {"NIBBLE_CPU": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512",
               "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx2": {"NIBBLE_CPU": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2",
             "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
}
# What gradient_checkpointing: auto is given to fit into.
MEMORY = {"llama-3.2-1b": "1400MiB"}
WORKLOADS = ("train", "train-checkpointing", "prompt", "generation", "start", "products")
# What `nibble train` and peer_torch.py say when the first step begins, and when it is done.
BEGINS, DONE = r"memory .* planned, |the first step begins", r"step 1/|the first step is done"


def nibble(ctx, part, config, *more):
    """A run of `nibble bench`; its median is taken over the rounds, of each the fastest of a few."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [ctx.nibble, "bench", config, "--only", part, "--seconds", str(ctx.seconds), "--threads",
                   str(ctx.threads), "--prompt", str(ctx.tokens), "--generate", str(ctx.generate), "--json", out.name]
        measure(command + list(more))
        all_parts = json.load(open(out.name))
    j = all_parts["generation" if part == "generation" else part]
    # of this part: the process has also read a large array, to measure the limits
    rate = j["gb_s" if part == "generation" else "gflops"]
    row = {"tokens_per_second": j["tokens_per_second"], "peak_rss": j["peak_memory"], "rate": rate}
    if j["percent"]:  # else no limit is known here
        row["limit"] = j["read_gb_s"] if part == "generation" else 100 * rate / j["percent"]
    return row


def peer(ctx, script, *more):
    out, rss = measure([sys.executable, os.path.join(HERE, script), *more, "--threads", str(ctx.threads)])
    j = json.loads(out.splitlines()[-1])
    return {"tokens_per_second": j["tokens"] / min(j["seconds"]), "peak_rss": rss}


def start(command):
    """Seconds from a trainer's start to its first step, by what it says on the way."""
    seconds = {}
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
        for line in p.stderr:
            now = time.perf_counter() - began
            said.write(line)
            for name, pattern in (("seconds_to_first_step", BEGINS), ("seconds_to_its_end", DONE)):
                if re.match(pattern, line):
                    seconds.setdefault(name, now)
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if p.returncode or len(seconds) < 2:
            raise RuntimeError(said.read().strip()[-400:] or f"status {p.returncode}")
    return {**seconds, "peak_rss": usage.ru_maxrss * 1024}


def measure(command):
    """Standard output and the peak of resident memory in bytes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        p = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if p.returncode:
            raise RuntimeError(err.read().decode(errors="replace").strip()[-400:] or f"status {p.returncode}")
        return out.read().decode(), usage.ru_maxrss * 1024


def write_configs(ctx, shape, folder):
    """One for a base in 4 bits, one for it as it is. Only a real run reads the data."""
    paths = {}
    for name, four in (("nf4", "true"), ("bf16", "false")):
        paths[name] = os.path.join(ctx.cache, f"{shape}-{name}.yaml")
        with open(paths[name], "w") as f:
            f.write(f"base_model: {folder}\nload_in_4bit: {four}\nadapter: {'qlora' if four == 'true' else 'lora'}\n"
                    f"quantized_cache: {ctx.cache}/nf4\nlora_r: {ctx.rank}\nlora_alpha: {2 * ctx.rank}\n"
                    f"sequence_len: {ctx.tokens}\nexcess_length_strategy: split\nmicro_batch_size: 1\n"
                    f"output_dir: {ctx.cache}/out\n"
                    f"datasets: [{{path: {REPO}/README.md, type: completion}}]\n")
    return paths


def contenders(ctx, shape, workload):
    """Name -> a function that makes one measurement."""
    folder = models.model_folder(ctx.cache, shape, REPO)
    config = write_configs(ctx, shape, folder)
    train = ["--tokens", str(ctx.tokens), "--rank", str(ctx.rank), "--steps", str(ctx.steps)]
    found = {}
    if workload == "start":
        return starters(ctx, shape, folder, config["nf4"], train)
    if workload.startswith("train"):
        again = workload.endswith("checkpointing")
        levels = {", smart": ["smart"], ", true": ["true"]} if again else {"": ["false"]}
        if again and shape in MEMORY:
            levels[", auto in " + MEMORY[shape]] = ["auto", "--set", "memory_limit=" + MEMORY[shape]]
        for base in ("nf4", "bf16"):
            for name, level in levels.items():
                if base == "bf16" and "memory_limit" in level[-1]:
                    continue  # its weights alone are larger
                found["nibble " + base + name] = lambda b=base, s=level: nibble(
                    ctx, "step", config[b], "--set", "gradient_checkpointing=" + s[0], *s[1:])
        narrow = ctx.instructions == "all"  # without AVX512-BF16 PyTorch multiplies bf16 without vectors, 30 times slower
        for name, more in (("PyTorch + PEFT bf16", []), ("PyTorch + PEFT bf16, adapters too", ["--narrow-adapters"]),
                           ("PyTorch + PEFT f32", ["--dtype", "float32"]),
                           ("PyTorch + PEFT + bitsandbytes nf4", ["--nf4"])):
            if not narrow and "f32" not in name:
                continue
            more = more + (["--checkpointing"] if again else [])
            found[name] = lambda m=more: peer(ctx, "peer_torch.py", folder, *train, *m)
        return found
    part = workload
    size = ["--prompt", str(ctx.tokens)] if part == "prompt" else ["--generate", str(ctx.generate)]
    for name, base, head in (("nibble nf4", "nf4", "none"), ("nibble nf4, head nf4", "nf4", "nf4"),
                             ("nibble nf4, head int8", "nf4", "int8"), ("nibble bf16", "bf16", "none")):
        found[name] = lambda b=base, h=head: nibble(ctx, part, config[b], "--set", "lm_head_quant=" + h)
    for kind in models.GGUF_TYPES:
        path = models.gguf_file(ctx.cache, shape, kind, ctx.nibble, folder)
        found[f"llama.cpp {kind}"] = lambda p=path: peer(ctx, "peer_llamacpp.py", p, *size, "--runs", str(ctx.steps))
    return found


def starters(ctx, shape, folder, config, train):
    """What each keeps on disk from run to run is there. The peers take random tokens: their times do without opening a
    tokenizer and reading data, which nibble's has."""
    command = [ctx.nibble, "train", config, "--threads", str(ctx.threads), "--overwrite", "--set", "max_steps=1",
               "--set", "gradient_accumulation_steps=1", "--set", "save_strategy=no",
               "--set", "gradient_checkpointing=false"]
    start(command)  # which leaves the cache of the base in 4 bits behind
    found = {"nibble nf4": lambda: start(command)}
    torch = [sys.executable, os.path.join(HERE, "peer_torch.py")]
    train = train[:-1] + ["0", "--threads", str(ctx.threads)]  # 0 steps: the first one alone
    four = models.four_bit_folder(ctx.cache, shape, ctx.nibble, folder)
    for name, base, more in (("PyTorch + PEFT bf16", folder, []),
                             ("PyTorch + PEFT + bitsandbytes nf4, quantizing", folder, ["--nf4"]),
                             ("PyTorch + PEFT + bitsandbytes nf4, quantized before", four, [])):
        found[name] = lambda b=base, m=more: start(torch + [b] + train + m)
    return found


def side_by_side(ctx, shape, workload, makers):
    rows = {name: [] for name in makers}
    errors = {}
    for turn in range(ctx.rounds):
        for name, make in makers.items():
            if name in errors:
                continue
            start = time.time()
            try:
                rows[name].append(make())
            except RuntimeError as e:
                errors[name] = str(e)
            said = f"failed: {errors[name]}" if name in errors else report.speed_text(workload, rows[name][-1])
            took = f"{time.time() - start:.0f} s"
            print(f"{shape}, {workload}, round {turn + 1} of {ctx.rounds}: {name}: {said} ({took})", file=sys.stderr,
                  flush=True)
    # what else the machine does can only lower a limit: all are held against the highest that was measured
    limits = [r["limit"] for all_rounds in rows.values() for r in all_rounds if "limit" in r]
    for all_rounds in rows.values():
        for r in all_rounds:
            if "limit" in r:
                r["percent_of_limit"] = 100 * r["rate"] / max(limits)
    results = []
    for name, all_rounds in rows.items():
        result = {"shape": shape, "workload": workload, "contender": name}
        if name in errors:
            result["error"] = errors[name]
        for key in all_rounds[0] if all_rounds else ():
            values = [r[key] for r in all_rounds if r[key] is not None]
            if values:
                result[key] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
        results.append(result)
    return results


def machine(ctx):
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not there"
    first = open("/proc/cpuinfo").read().split("\n\n")[0]
    about = {k.strip(): v.strip() for k, v in re.findall(r"^(.*?):(.*)$", first, re.M)}
    flags = about.get("flags", "").split()
    memory = int(re.search(r"MemTotal:\s+(\d+)", open("/proc/meminfo").read())[1]) * 1024
    return {
        "cpu": about.get("model name", platform.machine()), "threads": ctx.threads, "memory": memory,
        "instructions": [f for f in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "kernel": platform.release().split("-")[0], "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "versions": versions,
        "nibble": subprocess.run([ctx.nibble, "--version"], capture_output=True, text=True).stdout.strip(),
    }


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--nibble", required=True)
    p.add_argument("--shapes", default="smollm2-135m,llama-3.2-1b")
    p.add_argument("--workloads", default=",".join(WORKLOADS))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--tokens", type=int, default=512)
    p.add_argument("--generate", type=int, default=256)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--steps", type=int, default=2, help="runs of a peer in each round that count; the fastest is taken")
    p.add_argument("--seconds", type=float, default=4, help="of nibble in each round")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--cache", default=os.path.join(REPO, "build/peers/models"))
    p.add_argument("--instructions", choices=INSTRUCTIONS, default="all", help="leave out what is newer; training only")
    p.add_argument("--out")
    ctx = p.parse_args()
    ctx.nibble = os.path.realpath(ctx.nibble)
    os.makedirs(ctx.cache, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.update(INSTRUCTIONS[ctx.instructions])
    about = machine(ctx)
    results = []
    workloads = ctx.workloads.split(",")
    for shape in ctx.shapes.split(","):
        for workload in workloads:
            if workload != "products":
                results += side_by_side(ctx, shape, workload, contenders(ctx, shape, workload))
    if "products" in workloads:  # of fixed sizes
        for size, makers in products.contenders(ctx):
            results += side_by_side(ctx, size, "products", makers)
    name = re.sub(r"[^a-z0-9]+", "-", about["cpu"].lower()).strip("-")
    out = ctx.out or os.path.join(REPO, "bench/results", f"peers-{name}.json")
    setting = {k: getattr(ctx, k) for k in ("tokens", "generate", "rank", "rounds", "steps", "seconds", "instructions")}
    with open(out, "w") as f:
        json.dump({"machine": about, "setting": setting, "results": results}, f, indent=1)
        f.write("\n")
    print(out)


if __name__ == "__main__":
    main()
