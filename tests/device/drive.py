"""sharpscope on an emulated accelerator: every placement error and host synchronisation, by line; a few minutes on one
core.

    python drive.py [--only NAME,...] [--strict] [--out FILE] [--repo DIR]

See emulated.py for what this finds and what it cannot. Numbers are compared with those of the plain CPU: the same bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve()


def scenarios(folder):
    """{name: function of the device}."""
    import numpy as np
    import torch

    import sharpscope
    from sharpscope.clip.answering import FeatureCache, answers, logits
    from sharpscope.curvature import ggn
    from sharpscope.curvature.arithmetic import precision_error, second_order
    from sharpscope.curvature.eigen import lanczos
    from sharpscope.curvature.hvp import HessianEngine
    from sharpscope.curvature.measures.density import measure_density
    from sharpscope.curvature.measures.registry import measure_layers
    from sharpscope.curvature.measures.rows import MeasureSettings
    from sharpscope.curvature.power import power_iteration
    from sharpscope.curvature.trace import hutchinson, hutchpp, per_example_trace, xtrace
    from sharpscope.curvature.tracking import tracked
    from sharpscope.finetuning.registry import METHODS
    from sharpscope.study.demo import demo_config
    from sharpscope.vocabulary import MEASURES

    pair = sharpscope.load_pair("mini:zeroshot", "mini:failure", model="mini")
    # The embedded world is loaded from files: what "pair" holds are host tensors in every scenario.
    data = sharpscope.load_dataset("mini:photo", model=pair.model, split="train", classnames=pair.classifier.classnames)
    layers = pair.layers("module")
    few = [layers[0], layers[len(layers) // 2], layers[-1]]
    blocks = {"(all)": [n for x in few for n in x.params]} | {x.name: x.params for x in few}

    def probe(device, size=12, batch=8, dtype=torch.float32):
        return sharpscope.Probe(pair.classifier, data, size=size, batch_size=batch, device=device, dtype=dtype)

    def theta(device, alpha=0.5, dtype=torch.float32):
        return {n: t.to(device) for n, t in pair.path(dtype).at(alpha).items()}

    def engine(device, dtype=torch.float32, **how):
        return HessianEngine(probe(device, dtype=dtype), theta(device, dtype=dtype), blocks, **how)

    def products(device, **how):
        with second_order():
            made = engine(device, **how)
            found = {}
            for n, spec in made.blocks.items():
                v = torch.linspace(-1, 1, spec.size, dtype=torch.float64)[:, None].to(made.device, made.dtype)
                found[n] = made.products({n: v})[n].cpu()
            return found

    def estimator(run):
        def scenario(device):
            with second_order():
                return run(engine(device, torch.float64).operator(few[1].name))

        return scenario

    def followed(operator):
        first = lanczos(operator, seed=0, max_matvecs=8)
        return tracked(operator, first.space, seed=1, rtol=0.01, max_matvecs=8)

    def measured(measures, **how):
        def scenario(device):
            settings = MeasureSettings(rtol=0.3, max_matvecs=4, noise_samples=2, pgd_steps=3, **how)
            result = measure_layers(probe(device), theta(device), few, measures, settings)
            again = measure_layers(probe(device), theta(device, 0.55), few, measures, settings, warm=result.warm)
            return [r["estimate"] for r in (*result.rows, *again.rows)]

        return scenario

    second = (
        "hessian_trace",
        "weighted_trace",
        "lambda_max",
        "lambda_min",
        "lambda_abs",
        "gradient_curvature",
        "gradient_alignment",
    )
    methods = ("per_example", "controlled", "hutchinson", "xtrace", "hutchpp")

    def text_head(device):
        """Both towers on the path, class vectors rebuilt at every point."""
        both = sharpscope.load_pair("mini:zeroshot", "mini:upgraded", model="mini", head="text")
        chosen = [x for x in both.layers("block") if x.tower == "text"][:2]
        p = sharpscope.Probe(both.classifier, data, size=8, batch_size=4, device=device)
        at = {n: t.to(device) for n, t in both.path().at(0.5).items()}
        what = ("hessian_trace", "lambda_max", "ggn_trace", "sharpness_avg")
        result = measure_layers(p, at, chosen, what, MeasureSettings(rtol=0.3, max_matvecs=4))
        return [r["estimate"] for r in result.rows]

    def evaluated(device):
        test = sharpscope.load_dataset("mini:sketch", model=pair.model, classnames=pair.classifier.classnames, limit=64)
        cache, at = FeatureCache(), theta(device)
        found = [
            answers(pair.classifier, at, test, 32, torch.device(device), cache=c).correct.mean()
            for c in (None, cache, cache)
        ]
        scores, _ = logits(pair.classifier, at, test, 32, torch.device(device))
        return [*found, float(scores.double().sum())]

    def projected(device):
        """Sets that hold some of the classes only, and classes united to coarser ones."""
        from sharpscope.clip.datasets.dataset import Dataset, Memory

        names = pair.classifier.classnames
        pixels = torch.from_numpy(
            np.random.default_rng(0).integers(0, 256, (10, 3, *pair.model.image_size), dtype=np.uint8)
        )
        how = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        some = Dataset("some", names, torch.arange(10) % 2, Memory(pixels), classes=[0, 1], **how)
        how |= {"projection": [i % 2 for i in range(len(names))], "target_names": ("a", "b")}
        coarse = Dataset("coarse", names, torch.arange(10) % 2, Memory(pixels), **how)
        return [answers(pair.classifier, theta(device), d, 5, torch.device(device)).nll.sum() for d in (some, coarse)]

    def evaluated_files(device):
        frame = sharpscope.evaluate(
            "mini:failure", "mini", ["mini:photo", "mini:sketch"], device=device, limit=32, bootstrap=40
        )
        return list(frame["estimate"])

    def tuned(method, **how):
        def scenario(device):
            settings = {
                "model": "mini",
                "steps": 2,
                "batch_size": 8,
                "lr": 1e-3,
                "shots": 2,
                "progress": False,
                "augment": False,
            }
            done = sharpscope.finetune("mini:zeroshot", "mini:photo", method, device=device, **settings, **how)
            return list(done.losses)

        return scenario

    def resumed(device):
        out = Path(folder) / f"resumed-{device}"
        from sharpscope.finetuning.statefile import StateFile

        seen = []
        save = StateFile.save

        def kept(self, at):
            save(self, at)
            seen.append(self.load(torch.device(device)).state)

        StateFile.save = kept
        try:
            settings = {"model": "mini", "steps": 3, "batch_size": 8, "lr": 1e-3, "shots": 2, "progress": False}
            done = sharpscope.finetune(
                "mini:zeroshot", "mini:photo", "wise-ft", device=device, out=out, checkpoint_every=1, **settings
            )
        finally:
            StateFile.save = save
        return [*done.losses, len(seen)]

    def study(device):
        config = dataclasses.replace(
            demo_config(),
            device=device,
            alphas=(0.0, 0.5, 1.0),
            repair_alphas=(0.5,),
            limit=32,
            probe_size=12,
            batch_size=8,
            bootstrap=40,
            jobs=1,
            measures=("hessian_trace", "lambda_max", "sharpness_avg"),
            shipped_pairs=False,
            layer_alphas=(0.0, 1.0),
            criticality_noise=(0.5,),
            granularity="block",
            max_matvecs=4,
            output_baselines=("ose", "vrf"),
            upgraded="mini:upgraded",
            density_layers=("(all)",),
            density_alphas=(0.5,),
        )
        config = dataclasses.replace(config, pairs=config.pairs[:1], ood=config.ood[:1])
        run = sharpscope.run(config, Path(folder) / f"study-{device}")
        assert not run.failed_units, run.failed_units
        return [*run.sharpness["estimate"], *run.accuracy["estimate"]]

    def half_study(device):
        config = dataclasses.replace(
            demo_config(),
            device=device,
            alphas=(0.0, 0.5, 1.0),
            repair_alphas=(0.5,),
            limit=16,
            probe_size=8,
            batch_size=8,
            bootstrap=40,
            jobs=1,
            measures=("hessian_trace",),
            shipped_pairs=False,
            layer_alphas=(0.0, 1.0),
            criticality_noise=(0.5,),
            granularity="block",
            max_matvecs=2,
            precision="bf16",
        )
        config = dataclasses.replace(config, pairs=config.pairs[:1], ood=config.ood[:1])
        return list(sharpscope.run(config, Path(folder) / f"half-{device}").sharpness["estimate"])

    def notebook(device):
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.GELU(),
            torch.nn.Flatten(),
            torch.nn.Linear(4 * 36, 5),
        )
        for i, p in enumerate(net.parameters()):
            torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(i))
        net = net.to(device)
        x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(9)).to(device)
        y = (torch.arange(8) % 5).to(device)
        loss = lambda net, b: torch.nn.functional.cross_entropy(net(b[0]), b[1])  # noqa: E731
        what = ("hessian_trace", "lambda_max", "ggn_trace", "fisher_trace", "sharpness_max", "sharpness_avg")
        batches, logits_of = [(x[:5], y[:5]), (x[5:], y[5:])], lambda net, b: (net(b[0]), b[1])
        table = sharpscope.layer_curvature(net, loss, batches, logits=logits_of, rtol=0.3, max_matvecs=4, measures=what)
        return list(table["estimate"])

    def outer(kind):
        def scenario(device):
            p, at = probe(device), theta(device)
            return [r.estimate for r in kind(p, at, blocks, seed=0, rtol=0.2, max_probes=8).values()]

        return scenario

    def spectrum(device):
        rows = measure_density(
            probe(device), theta(device), few, ["(all)"], MeasureSettings(density_steps=4, density_runs=2)
        )
        return [r["density"] for r in rows]

    def fisher_operator(device):
        with second_order():
            made = HessianEngine(ggn.Fisher(probe(device), samples=2), theta(device), blocks)
            return [per_example_trace(made.operator(few[1].name), seed=0, max_matvecs=4).estimate]

    def pair_on_device(device):
        """Live tensors of the device as the ends of a pair."""
        zero, one = (
            {n: t.to(device) for n, t in end.items() if not n.startswith("head.")}
            for end in (pair.theta_0, pair.theta_1)
        )
        there = sharpscope.load_pair(zero, one, model="mini", head="zeroshot", classnames=pair.classifier.classnames)
        p = sharpscope.Probe(there.classifier, data, size=8, batch_size=8, device=device)
        frame = sharpscope.layer_sharpness(
            there, p, alphas=(0.5,), measures=("hessian_trace",), granularity="block", rtol=0.3, max_matvecs=2
        )
        return list(frame["estimate"])

    own = {"starft": {"falls": "steps"}, "tpgm-project": {"file": "mini:success"}}  # StarFT's falls in one epoch too
    found = {
        "products": products,
        "products, torch's own formulas": lambda d: products(d, analytic=False),
        "products, graphs rebuilt": lambda d: products(d, memory=3_000_000),
        "per_example": estimator(lambda o: per_example_trace(o, seed=0, max_matvecs=6).estimate),
        "hutchinson": estimator(lambda o: hutchinson(o, seed=0, max_matvecs=10).estimate),
        "xtrace": estimator(lambda o: xtrace(o, seed=0, num_matvecs=8).estimate),
        "hutchpp": estimator(lambda o: hutchpp(o, seed=0, max_matvecs=12).estimate),
        "lanczos": estimator(lambda o: lanczos(o, seed=0, max_matvecs=8).largest.value),
        "power iteration": estimator(lambda o: power_iteration(o, seed=0, max_matvecs=6).value),
        "tracked": estimator(lambda o: followed(o).largest.value),
        **{f"measures, {m}": measured(second, trace_method=m) for m in methods},
        "measures, graphs rebuilt": measured(second, memory=3_000_000),
        "measures, finite radius": measured(tuple(m for m in MEASURES if m.startswith("sharpness_"))),
        "measures, ggn and fisher": measured(("ggn_trace", "fisher_trace")),
        "ggn_trace": outer(ggn.ggn_trace),
        "fisher operator": fisher_operator,
        "measures, bf16": measured(("hessian_trace", "lambda_max"), precision="bf16"),
        "precision_error": lambda d: list(precision_error(probe(d), theta(d), blocks, "bf16").values()),
        "density": spectrum,
        "text head": text_head,
        "evaluation": evaluated,
        "evaluation, some classes": projected,
        "evaluate": evaluated_files,
        "notebook": notebook,
        "a pair of live tensors": pair_on_device,
        **{f"finetune, {m}": tuned(m, **own.get(m, {})) for m in METHODS},
        "finetune, fp16": tuned("wise-ft", precision="fp16"),
        "finetune, bf16": tuned("wise-ft", precision="bf16"),
        "finetune, resumed": resumed,
        "study": study,
        "study, bf16": half_study,
    }
    return found


def alike(a, b):
    """Whether two results are the same numbers, NaN included; autocast ones differ by what the CPU rounds itself."""
    import torch

    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="scenarios whose name holds one of these")
    parser.add_argument("--strict", action="store_true", help="raise at the first placement error")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repo", type=Path, default=Path.cwd())
    options = parser.parse_args()
    sys.path[:0] = [str(options.repo), str(HERE.parent)]
    import torch
    from emulated import Emulated

    torch.set_num_threads(1)
    device = Emulated(strict=options.strict)
    lines = []

    def say(text):
        print(text, flush=True)
        lines.append(text)

    with tempfile.TemporaryDirectory() as folder:
        for name, run in scenarios(folder).items():
            if options.only and not any(word in name for word in options.only.split(",")):
                continue
            start = time.perf_counter()
            before = sum(device.errors.values()), sum(device.synchronisations.values())
            device.label = name
            try:
                with device:
                    found = run("cuda")
                errors, waits = (
                    sum(device.errors.values()) - before[0],
                    sum(device.synchronisations.values()) - before[1],
                )
                same = alike(found, run("cpu"))
                verdict, numbers = "WRONG" if errors else "ok", "same bits as" if same else "OTHER NUMBERS than"
                spent = time.perf_counter() - start
                say(f"{verdict:<6} {name}: {errors} errors, {waits} synchronisations, {numbers} the CPU, {spent:.1f} s")
            except Exception as error:
                say(
                    f"FAILED {name}: {type(error).__name__}: {error}\n"
                    + "\n".join(traceback.format_exc().splitlines()[-14:])
                )
    say("\n" + device.report())
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    sys.exit(bool(device.errors))


if __name__ == "__main__":
    main()
