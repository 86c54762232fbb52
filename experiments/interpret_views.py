"""The sections of the page of `experiments.interpret`: each a function of `Views` to a section and its figures."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.interpret_images import projection, saliency, this_sample, units
from experiments.interpret_subject import MEASURED, STEPS, Effect, Subject, Views, bars, signed
from jaxgan import classes as class_lists
from jaxgan import report
from jaxgan.interpret import directions, probe
from jaxgan.page import Picture, Section, Table

__all__ = ["VIEWS", "Subject", "Views", "introduction"]

SPACES = {
    "z": "the latent z, drawn from N(0, I)",
    "w": "the styles w that the mapping network makes of the latent z",
    "codes": "the codes that the generator makes of its latent: a category, numbers from -1 to 1, noise",
}
WALKED = f"from {STEPS[0]:.0f} to {STEPS[-1]:.0f} standard deviations"
RANKED = 4  # samples by which the effective rank is averaged
LATENTS, MOST_CLASSES = 4, 16  # rows and columns of the picture of the same latents in every class, at most
FEW = 2000  # samples behind the principal components, at most

Found = tuple[Section, dict[str, Any]]


def introduction(views: Views) -> str:
    generator, subject = views.space.gan.generator, views.subject
    h, w, c = generator.shape
    names = subject.source.class_names if subject.source is not None and generator.num_classes else ()
    classes = f" of {class_lists.line(names, generator.num_classes)}" if generator.num_classes else ", unconditional"
    judged = (
        f" A classifier of the real images, right on {subject.accuracy:.1%} of those it has not seen, says what shows."
        if subject.accuracy is not None and subject.source is not None and subject.source.num_classes > 1
        else ""
    )
    count = sum(x.size for x in jax.tree.leaves(views.space.gan.params))
    return (
        f"A {type(generator).__module__.rpartition('.')[2]} generator of {h}x{w}x{c} images{classes}, {count:,} "
        f"parameters. One moves about in {SPACES[views.space.name]} ({views.points.shape[1]} dimensions).{judged}"
    )


def overview(views: Views) -> Found:
    n = min(32, len(views.images))
    shown = Picture("samples", report.grid(views.images[:n], columns=8), f"The first {n} samples.", "a grid of samples")
    missing = "; ".join(views.subject.missing.values())
    pictures = [shown, *([by_class(views)] if views.subject.classes > 1 else [])]
    return Section("Samples", "What the generator makes, unselected.", pictures, note=missing), {
        "parameters": _count(views)
    }


def by_class(views: Views) -> Picture:
    """The same latents in every class: what a class changes, and what it leaves as it is."""
    k, n = min(views.subject.classes, MOST_CLASSES), LATENTS
    z = views.space.gan.latents(views.key, n)
    images = views.space.gan.images(jnp.repeat(z, k, axis=0), np.tile(np.arange(k), n))
    names = views.subject.source.class_names[:k] if views.subject.source is not None else ()
    text = f"The same {n} latents, one a row, in the classes {', '.join(names or map(str, range(k)))}, one a column."
    return Picture("classes", report.grid(images, columns=k), text, "the same latents in every class")


def _count(views: Views) -> int:
    return sum(x.size for x in jax.tree.leaves(views.space.gan.params))


def traversals(views: Views) -> Found:
    if views.space.name == "codes":
        return codes(views)
    # A first look at few samples finds the axes that matter, however many there are.
    sigma, few = views.points.std(0), views.points[:8]
    change = np.empty(views.points.shape[1])
    for i in range(len(change)):
        step = np.zeros(len(change), np.float32)
        step[i] = sigma[i] / 2
        ends = views.at_class(np.concatenate([few - step, few + step]))
        change[i] = np.sqrt(np.square(ends[len(few) :] - ends[: len(few)]).mean())
    axes = np.argsort(-change)[: views.config.directions]
    effects = dict(zip(axes.tolist(), views.effect(np.eye(len(change))[axes]), strict=True))
    axes = np.array(sorted(effects, key=lambda i: -effects[i].change))
    vectors = np.eye(len(change))[axes]
    table, figures = _effects([f"axis {i}" for i in axes], [effects[i] for i in axes])
    text = (
        f"Each row changes one coordinate of {SPACES[views.space.name].split(',')[0]} {WALKED}, the others staying as "
        f"they are in sample {views.config.sample} (middle column). Shown are the {len(axes)} axes that change most."
    )
    picture = Picture("axes", views.strip(vectors, views.own), text, "walks along axes")
    spread = (
        f"The largest axis changes an image {change.max() / max(change.min(), 1e-9):.1f} times as much as the least."
    )
    return Section("Walks along single axes", spread, [picture], [table]), figures | {"change": change}


def codes(views: Views) -> Found:
    """InfoGAN's: categories down, a number across."""
    generator = views.space.gan.generator
    k, c = generator.categorical, generator.continuous
    values = np.linspace(-2, 2, 9)
    pictures, figures = [], {}
    rows = min(k, 10) if k else 1
    for number in range(max(c, 1)):
        points = np.tile(views.own, (rows, len(values), 1))
        if k:
            points[:, :, :k] = np.eye(k)[:rows, None]
        points[:, :, k : k + c] = 0
        if c:
            points[:, :, k + number] = values
        text = f"Category 0 to {rows - 1} from top to bottom" if k else "One row"
        text += f", number {number + 1} from -2 to 2 from left to right (in training -1 to 1)." if c else "."
        pictures.append(Picture(f"codes_{number + 1}", report.grid(views.at_class(points), columns=9), text, "codes"))
    vectors = np.eye(views.points.shape[1])[k : k + c]
    table, found = _effects([f"number {i + 1}" for i in range(c)], views.effect(vectors)) if c else (None, {})
    seen = views.classes_of(views.images)
    if k and seen is not None:
        category = views.points[:, :k].argmax(-1)
        shares = [float(np.mean(seen[category == i] == _mode(seen[category == i]))) for i in range(k)]
        figures["purity"] = float(np.mean([seen[i] == _mode(seen[category == category[i]]) for i in range(len(seen))]))
        named = Table(
            "What a classifier sees in samples of each category, most often",
            ("category", "class", "share"),
            [(i, _mode(seen[category == i]), f"{share:.1%}") for i, share in enumerate(shares)],
        )
        tables = [named, *([table] if table else [])]
    else:
        tables = [table] if table else []
    text = (
        "What the codes mean that the discriminator's second head can tell from an image. Noise is the same throughout."
    )
    return Section("The codes", text, pictures, tables), figures | found


def _mode(values: np.ndarray) -> int:
    return int(np.bincount(values).argmax()) if len(values) else -1


def _effects(names: list[str], effects: list[Effect], extra: dict[str, list] | None = None) -> tuple[Table, dict]:
    """A row for each direction, and the same as figures."""
    extra = extra or {}
    header = ["direction", *extra, "σ", "change", "class kept"]
    rows = []
    for i, (name, effect) in enumerate(zip(names, effects, strict=True)):
        kept = "–" if effect.kept is None else f"{effect.kept:.0%}"
        rows.append((name, *(f"{values[i]:.1%}" for values in extra.values()), effect.sigma, effect.change, kept))
    caption = (
        f"σ of samples along it; RMS change of pixels (-1 to 1) over one σ; images of the same class at ±2σ; "
        f"{MEASURED} samples"
    )
    figures = {"directions": [{"name": n} | e._asdict() for n, e in zip(names, effects, strict=True)]}
    return Table(caption, header, rows), figures


def _found(views: Views, kind: str, title: str, text: str, found: directions.Directions) -> Found:
    """A section of walks along directions, at two samples."""
    names = [f"{i + 1}" for i in range(len(found.vectors))]
    table, figures = _effects(names, views.effect(found.vectors), {"share": list(found.share)})
    other = views.points[(views.config.sample + 1) % len(views.points)]
    pictures = [
        Picture(
            f"{kind}_1",
            views.strip(found.vectors, views.own),
            f"Directions 1 to {len(names)} from the top, {WALKED}, through sample {views.config.sample}.",
            f"walks along {kind} directions",
        ),
        Picture(
            f"{kind}_2",
            views.strip(found.vectors, other),
            "The same directions through another sample.",
            f"the same {kind} directions, another sample",
        ),
    ]
    return Section(title, text, pictures, [table]), figures | {"vectors": found.vectors, "share": found.share}


def _sefa(views: Views) -> tuple[directions.Directions, list[str]] | None:
    render = views.space.at(views.own_label)
    layers, _ = probe.affine_layers(render, views.points.shape[1])
    if not layers:
        return None
    weight = probe.weight_of(render, layers, views.points.shape[1])
    return directions.sefa(weight, views.config.directions), layers


def sefa(views: Views) -> Found:
    title = "Closed-form directions (SeFa)"
    result = _sefa(views)
    if result is None:
        why = f"No layer is affine in {views.space.name}: there is no weight to take apart."
        return Section(title, "Eigenvectors of the first layer's weights.", note=why), {}
    found, layers = result
    text = (
        f"Unit steps along which the layers that take {views.space.name} ({_listed(layers)}) change most: eigenvectors "
        "of AᵀA of their weight A, without a sample or a label (arXiv:2007.06600)."
    )
    section, figures = _found(views, "sefa", title, text, found)
    return section, figures | {"layers": layers}


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def ganspace(views: Views) -> Found:
    title = "Principal components (GANSpace)"
    points = views.points[:FEW]
    if views.space.name == "w":
        activations, where = points, "the styles w themselves"
    else:
        render = views.space.at(views.own_label)
        _, later = probe.affine_layers(render, points.shape[1])
        if not later:
            why = "No layer sees anything but affine functions of the latent."
            return Section(title, "Principal components of early activations.", note=why), {}
        look = jax.jit(lambda p: probe.observed(render)(p)[1][later[0]].inputs.reshape(len(p), -1))
        starts = range(0, len(points) - len(points) % 8, len(points) // 8)
        activations = np.concatenate([np.asarray(look(points[i : i + len(points) // 8])) for i in starts])
        points = points[: len(activations)]
        where = f"what {later[0]} sees of {len(points):,} samples, by regression"
    found = directions.ganspace(activations, points, views.config.directions)
    text = f"Directions along which activations vary most: principal components of {where} (arXiv:2004.02546)."
    section, figures = _found(views, "ganspace", title, text, found)
    if (other := _sefa(views)) is not None:
        alike = np.abs(found.vectors @ other[0].vectors.T).max(1)
        note = f"Largest |cosine| with a SeFa direction shown: {', '.join(f'{x:.2f}' for x in alike)}."
        section, figures = section._replace(note=note), figures | {"cosine_with_sefa": alike}
    return section, figures


def jacobian(views: Views) -> Found:
    found = views.spectrum
    others = views.points[:RANKED]
    render = views.space.at(views.own_label)
    spectra = [directions.spectrum(directions.jacobian(render, jnp.asarray(p)), 1) for p in others]
    ranks = np.array([s.rank for s in spectra])
    h, w, c = views.space.gan.generator.shape
    changes = found.changes.reshape(-1, h, w, c).mean(-1)
    shown = found.singular[:64]
    span = f"from {shown[0]:.3g} to {shown[-1]:.3g}"
    pictures = [
        Picture(
            "jacobian_1",
            views.strip(found.directions.vectors, views.own),
            f"The sample along its own directions, the strongest on top, {WALKED}.",
            "walks along singular vectors",
        ),
        Picture(
            "jacobian_2",
            report.grid(signed(changes), columns=len(changes)),
            "What a small step along each does: red pixels become brighter, blue ones darker.",
            "left singular vectors",
        ),
        Picture("jacobian_3", bars(shown), f"The first {len(shown)} singular values, {span}.", "bars"),
    ]
    n = len(found.singular)
    text = (
        f"The derivative of the image with respect to {views.space.name} at sample {views.config.sample}: its right "
        f"singular vectors are the steps that change this image most. Its effective rank (the exponential of the "
        f"singular values' entropy) is {found.rank:.1f} of {n}; of {RANKED} others {ranks.mean():.1f}. The first "
        f"direction has {found.directions.share[0]:.0%} of the squared change."
    )
    figures = {"singular": found.singular, "effective_rank": found.rank, "other_ranks": ranks}
    return Section("Jacobian of the generator", text, pictures), figures


def explained(views: Views) -> Found:
    other = _sefa(views)
    vectors = {"Jacobian": views.spectrum.directions.vectors[0]}
    if other is not None:
        vectors["SeFa"] = other[0].vectors[0]
    return this_sample(views, vectors)


VIEWS = (overview, traversals, sefa, ganspace, projection, units, saliency, jacobian, explained)
