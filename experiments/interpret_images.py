"""The sections of the page of `experiments.interpret` about images: projected, dissected, judged, explained."""

from typing import Any

import jax
import numpy as np

from experiments.interpret_subject import Views, enlarged, heat, rgb, signed
from jaxgan import report
from jaxgan.critic import seen_by_last
from jaxgan.interpret import dissection
from jaxgan.interpret.projection import Features, project, psnr
from jaxgan.interpret.saliency import saliency as gradients
from jaxgan.metrics import embed
from jaxgan.metrics.classify import scaled
from jaxgan.metrics.neighbours import nearest, neighbours
from jaxgan.page import Picture, Section, Table

PROJECTED, CONTROLS = 6, 2  # images of the data set, and samples, whose points are known to exist
DISSECTED, SHOWN = 24, 8  # samples without each unit; of them and of the units in the picture
JUDGED, VERDICTS = 4, 256  # real and generated images with saliency; of each behind the mean verdict
COPIES = 32  # noisy ones of SmoothGrad
NEAREST = 6

Found = tuple[Section, dict[str, Any]]


def real_images(views: Views, n: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Of the data set, at random: [-1, 1] (n, h, w, c), and labels where it has classes."""
    source = views.subject.source
    assert source is not None
    rows = np.random.default_rng(seed).choice(source.num_examples, min(n, source.num_examples), replace=False)
    found = source.read(rows)
    return scaled(found["image"]), found["label"] if source.num_classes > 1 else None


def critic_features(views: Views) -> Features | None:
    critic = views.subject.critic
    if critic is None:
        return None
    variables = {"params": critic.params, **critic.variables}

    def features(images: jax.Array, label: jax.Array | None) -> jax.Array:
        seen = label if critic.sees_class else None
        return seen_by_last(critic.discriminator, variables, images, seen, train=False)[1]

    return features


def projection(views: Views) -> Found:
    """Images -> the points nearest to them, and back."""
    config, subject = views.config, views.subject
    labels = None
    if subject.targets is not None:
        targets, what = scaled(subject.targets), f"the {len(subject.targets)} images given"
    elif subject.source is not None:
        targets, labels = real_images(views, PROJECTED, config.seed)
        what = f"{len(targets)} images of {subject.source.name}"
    else:
        targets, what = np.zeros((0, *subject.space.gan.generator.shape), np.float32), ""
    controls = views.images[-CONTROLS:]
    targets = np.concatenate([targets, controls])
    known = None
    if subject.classes and views.labels is not None and labels is not None:
        known = np.concatenate([labels, views.labels[-CONTROLS:]]) % subject.classes
    found = project(
        views.space,
        targets,
        views.key,
        labels=known,
        features=critic_features(views),
        restarts=config.restarts,
        steps=config.projection_steps,
    )
    difference = np.abs(found.images - targets).mean(-1)
    rows = [rgb(targets), rgb(found.images), heat(difference, together=True)]
    given = len(targets) - CONTROLS
    text = (
        f"Top: {what + ', then ' if what else ''}{CONTROLS} samples of the generator; middle: the nearest images "
        f"that it can make; bottom: where they differ, black: not at all, white: by {difference.max():.2g} (-1 to 1)."
    )
    picture = Picture("projection", report.grid(np.concatenate(rows), columns=len(targets)), text, "projections")
    decibels = psnr(found.error)
    rows_of = [
        (f"image {i + 1}" if i < given else f"sample {i + 1 - given}", found.error[i] ** 0.5, decibels[i])
        for i in range(len(targets))
    ]
    table = Table("How near they are", ("", "RMS difference (-1 to 1)", "PSNR, dB"), rows_of)
    among = "of 512 samples" if known is None else "samples of its class"
    with_features = "pixels and the discriminator's features" if subject.critic else "pixels alone"
    section = Section(
        "Projection of images",
        f"Adam on a point of {views.space.name}, {config.projection_steps} steps from each of the {config.restarts} "
        f"nearest {among}, by the distance of {with_features}. What cannot be made again, the generator has not "
        "learnt; its own samples show how well the search itself does.",
        [picture],
        [table],
        note="" if subject.critic else f"Without features: {subject.missing['critic']}",
    )
    figures = {"psnr": decibels[:given], "psnr_of_samples": decibels[given:], "points": found.points}
    return section, figures


def units(views: Views) -> Found:
    title, layer = "Units, one left out at a time", views.layer
    if not layer:
        return Section(
            title, "Ablation of units.", note="No layer has units beside the first, which sees the latent."
        ), {}
    n = min(DISSECTED, len(views.points))
    points, labels = views.points[:n], None if views.labels is None else views.labels[:n]
    found = dissection.ablate(views.space, points, labels, layer, views.config.units)
    before = views.classes_of(found.before)
    moved = None
    if before is not None:
        after = views.classes_of(found.images.reshape(-1, *found.before.shape[1:]))
        assert after is not None
        moved = (after.reshape(-1, n) != before).mean(1)
    shown = min(SHOWN, len(found.units))
    few = min(SHOWN, n)
    changes = (found.images[:shown, :few] - found.before[:few]).mean(-1)
    rows = np.concatenate([rgb(found.before[:few]), *map(signed, changes)])
    names = ", ".join(map(str, found.units[:shown]))
    pictures = [
        Picture(
            "units",
            report.grid(rows, columns=few),
            "Top row: samples. Below, one row each, what becomes brighter "
            f"(red) or darker (blue) without unit {names}, scaled to its largest.",
            "changes without units",
        )
    ]
    if found.maps.shape[2] * found.maps.shape[3] > 1:
        size = found.before.shape[1:3]
        maps = np.concatenate([heat(enlarged(m[:few], size)) for m in found.maps[:shown]])
        rows = np.concatenate([rgb(found.before[:few]), maps])
        pictures.append(
            Picture(
                "unit_maps",
                report.grid(rows, columns=few),
                "Where these units are active, in the same order, each image scaled to its largest activation.",
                "activations of units",
            )
        )
    header = ["unit", "change", *(["class changes"] if moved is not None else [])]
    rows_of = [
        (int(u), float(found.change[i]), *([f"{moved[i]:.0%}"] if moved is not None else []))
        for i, u in enumerate(found.units[:shown])
    ]
    table = Table(f"RMS change of pixels (-1 to 1) over {n} samples without the unit", header, rows_of)
    tried = f"all {found.channels}" if len(found.units) == found.channels else f"{len(found.units)} of {found.channels}"
    text = (
        f"Each channel of what {layer} sees is set to zero in turn ({tried} units; arXiv:1811.10597). The first "
        f"changes {found.change[0] / max(np.median(found.change), 1e-9):.1f} times as much as the median unit."
    )
    figures: dict[str, Any] = {"layer": layer, "units": found.units, "change": found.change, "channels": found.channels}
    return Section(title, text, pictures, [table]), figures | ({} if moved is None else {"class_changes": moved})


def saliency(views: Views) -> Found:
    title, critic = "What the discriminator looks at", views.subject.critic
    if critic is None:
        why = f"There is no discriminator to ask: {views.subject.missing['critic']}"
        return Section(title, "Gradients of its verdict.", note=why), {}
    fake, fake_labels = views.images, views.labels
    sets = {"generated": (fake, fake_labels)}
    if views.subject.source is not None:
        real, labels = real_images(views, VERDICTS, views.config.seed + 1)
        if not critic.sees_class or labels is not None:
            sets = {"real": (real, labels)} | sets
    shown, maps, verdicts = [], [], {}
    for name, (images, labels) in sets.items():
        seen = labels if critic.sees_class and labels is not None else None
        logits = critic.logits(images[:VERDICTS], None if seen is None else seen[:VERDICTS])
        verdicts[name] = (float(logits.mean()), float(logits.std()))
        few = images[:JUDGED]
        own = None if seen is None else seen[:JUDGED]
        shown.append(rgb(few))
        maps.append([heat(gradients(critic, few, own)), heat(gradients(critic, few, own, copies=COPIES))])
    rows = [np.concatenate(shown), *(np.concatenate(kind) for kind in zip(*maps, strict=True))]
    picture = Picture(
        "saliency",
        report.grid(np.concatenate(rows), columns=len(rows[0])),
        f"Top: {' then '.join(sets)} images; middle: where a pixel moves the verdict (absolute gradient); bottom: the "
        f"same over {COPIES} noisy copies (SmoothGrad, arXiv:1706.03825).",
        "saliency maps",
    )
    table = Table(
        f"The verdict (logit; higher is more real) over at most {VERDICTS} images",
        ("images", "mean", "standard deviation"),
        [(name, *values) for name, values in verdicts.items()],
    )
    return Section(title, "Bright pixels are those that the verdict depends on.", [picture], [table]), {
        "verdicts": verdicts
    }


def this_sample(views: Views, vectors: dict[str, np.ndarray]) -> Found:
    """Nearest training images, realism, verdict, and what changes it most."""
    number, subject = views.config.sample, views.subject
    rows: list[tuple] = []
    figures: dict[str, Any] = {}
    strip = Picture(
        "explain_changes",
        views.strip(np.stack(list(vectors.values())), views.own),
        f"What changes sample {number} most: along the first direction of {', then of '.join(vectors)}.",
        "what changes the sample most",
    )
    alone = Picture("explain_sample", report.grid(views.own_image[None], scale=0), f"Sample {number}.", "the sample")
    pictures, note = [alone, strip], ""
    if subject.critic is not None:
        label = None if views.own_label is None or not subject.critic.sees_class else np.array([views.own_label])
        own = float(subject.critic.logits(views.own_image[None], label)[0])
        others = subject.critic.logits(views.images, views.labels if subject.critic.sees_class else None)
        rows.append(("verdict of the discriminator", own, f"above {np.mean(others < own):.0%} of the samples"))
        figures |= {"verdict": own}
    if views.real is None or subject.network is None or subject.source is None:
        note = f"Without neighbours and realism: {subject.missing.get('data', '')}"
    else:
        seen = embed.embed(subject.network, [views.own_image[None], views.images])
        real = views.real.features
        found = neighbours(real, seen.features)
        near = nearest(seen.features[:1], real, min(NEAREST, len(real)))
        training = subject.source.read(views.real.rows[near.rows[0]])
        tiles = np.concatenate([rgb(views.own_image[None]), rgb(training["image"])])
        pictures.insert(
            1,
            Picture(
                "explain_nearest",
                report.grid(tiles, columns=len(tiles)),
                f"Sample {number}, and the "
                f"{len(tiles) - 1} training images nearest to it in the classifier's features, of {len(real):,}.",
                "nearest training images",
            ),
        )
        pictures.remove(alone)
        realism, typical = found.realism[0], found.distance[1:]
        rows.append(
            (
                "realism",
                realism,
                f"above {np.mean(found.realism[1:] < realism):.0%} of the samples; 1 or more: among real images",
            )
        )
        rows.append(
            (
                "distance of the nearest training image",
                near.distances[0, 0],
                f"the samples' median is {np.median(typical):.3g}",
            )
        )
        figures |= {
            "realism": realism,
            "nearest": views.real.rows[near.rows[0]],
            "distances": near.distances[0],
            "precision": found.precision,
        }
        if seen.logits is not None:
            scores = np.exp(seen.logits[0] - seen.logits[0].max())
            names = subject.source.class_names
            best = int(scores.argmax())
            shown = names[best] if best < len(names) else str(best)
            rows.insert(0, ("class", shown, f"{scores.max() / scores.sum():.1%} sure"))
            figures |= {"class": best, "certainty": float(scores.max() / scores.sum())}
    table = Table(f"Sample {number} beside {len(views.images):,} others", ("", "value", ""), rows)
    return Section(
        "This sample explained",
        "What it is, where it comes from, what would change it.",
        pictures,
        [table] if rows else [],
        note,
    ), figures
