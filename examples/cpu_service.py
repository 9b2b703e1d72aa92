"""An HTTP service on a CPU that looks its plan up when it starts, and never searches.

First tune once, for example when the container image is built; then serve::

    python examples/cpu_service.py tune --budget 20s --db plans.db
    python examples/cpu_service.py serve --port 8000 --db plans.db
    curl --data '[[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]]' http://127.0.0.1:8000/

If no plan answers, the service says so and runs the model itself.
"""

import argparse
import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

import autotune
from autotune.errors import ModelError, PlanNotFoundError

NAME = "scorer"


def make_model() -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the model and one set of inputs; weights come from a seed, where a service reads a checkpoint."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(8, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 1024), torch.nn.GELU()
    return torch.nn.Sequential(*layers, torch.nn.Linear(1024, 2)).eval(), torch.randn(1, 8)


def tune(budget: str, db: str | None, backends: tuple[str, ...] | None) -> None:
    """Search for the plan and store it."""
    model, inputs = make_model()
    outcome = autotune.tune(model, inputs, name=NAME, device="cpu", budget=budget, db=db, backends=backends)
    if outcome.plan is None:
        sys.exit(f"the finals could not decide: {outcome.reason}\nrun this command again; only the finals are repeated")
    print(f"{outcome.status}: {outcome.plan.configuration}, speedup {outcome.plan.speedup:.2f}")


def load(db: str | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the stored plan, or the model itself if there is none."""
    model, inputs = make_model()
    try:
        fast = autotune.load(model, inputs, name=NAME, device="cpu", db=db)
    except PlanNotFoundError as missing:
        print(f"warning: the model runs without a plan: {missing}", file=sys.stderr)
        return model
    print(fast, {step: round(taken, 3) for step, taken in fast.seconds.items()}, file=sys.stderr)
    return fast


def handler_of(answer: Callable[[torch.Tensor], torch.Tensor]) -> type[BaseHTTPRequestHandler]:
    """Return a request handler that answers with a model; a plan may be called from several threads."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                rows = torch.tensor(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                with torch.no_grad():
                    status, content = 200, answer(rows).tolist()
            except (TypeError, ValueError, RuntimeError, ModelError) as error:
                status, content = 400, {"error": str(error)}
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main() -> None:
    """Tune, or serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("tune", "serve"))
    parser.add_argument("--budget", default="1m", help="time of active search (the finals come on top)")
    parser.add_argument("--db", help="the tuning database; by default your own")
    parser.add_argument("--backends", type=lambda names: tuple(names.split(",")), help="such as eager,onnxruntime")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    options = parser.parse_args()
    if options.task == "tune":
        tune(options.budget, options.db, options.backends)
        return
    with ThreadingHTTPServer(("127.0.0.1", options.port), handler_of(load(options.db))) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
