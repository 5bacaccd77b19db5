"""Products beside OpenBLAS and PyTorch (oneDNN): a linear layer (x W^T), and the gradient of its input (dy W)."""

import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SIZES = ((512, 2048, 2048), (512, 8192, 2048), (512, 576, 576), (64, 2048, 2048))  # rows, outputs, inputs
SECONDS = 0.4  # of each, a turn


class Torch:
    """peer_products.py, from the first question on."""

    def __init__(self, ctx):
        self.command = [sys.executable, os.path.join(HERE, "peer_products.py"), "--threads", str(ctx.threads)]
        self.process = None

    def ask(self, question):
        self.process = self.process or subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                        text=True)
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError) as e:
            raise RuntimeError(f"{self.command[1]} stopped: {e}") from e

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()


def bench_gemm(ctx, label, size, variant):
    """The line of bench_gemm for this product; variant "sgemm": OpenBLAS's."""
    program = os.path.join(os.path.dirname(ctx.nibble), "bench/bench_gemm")
    name = "{} {}x{}x{}".format(label, *size)
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        p = subprocess.run([program, "-s", str(SECONDS), "-t", str(ctx.threads), "-p", name, "-v", variant,
                            "-j", out.name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        lines = json.load(out) if p.returncode == 0 else []
    lines = [line for line in lines if (line["variant"] == "sgemm") == (variant == "sgemm")]
    if len(lines) != 1:
        raise RuntimeError(p.stderr.strip() or f"{program} has no single line for {name}")
    row = {"gflops": lines[0]["gflops"]}
    if "percent_of_peak" in lines[0]:
        row.update(percent_of_limit=lines[0]["percent_of_peak"], peak_gflops=lines[0]["peak_gflops"])
    return row


def contenders(ctx):
    """(size and direction, contenders) one after the other."""
    torch = Torch(ctx)
    dtype = "bfloat16" if ctx.instructions == "all" else "float32"
    for rows, outputs, inputs in SIZES:
        for backward in (False, True):
            size = (rows, inputs, outputs) if backward else (rows, outputs, inputs)  # as matrices: M, N, K
            way = "bwd" if backward else "fwd"
            question = {"rows": rows, "outputs": outputs, "inputs": inputs, "backward": backward, "seconds": SECONDS,
                        "dtype": dtype}
            yield f"{rows}x{outputs}x{inputs}, {'dX' if backward else 'forward'}", {
                "nibble bf16": lambda s=size, w=way: bench_gemm(ctx, "bf16 " + w, s, "best"),
                "nibble nf4": lambda s=size, w=way: bench_gemm(ctx, "nf4 " + w, s, "best"),
                "OpenBLAS f32": lambda s=size, w=way: bench_gemm(ctx, "bf16 " + w, s, "sgemm"),
                f"PyTorch {dtype}": lambda q=question: torch.ask(q)}
    torch.close()
