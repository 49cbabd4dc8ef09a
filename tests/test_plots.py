from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from uad_core import plots
from uad_core.errors import UserError


@pytest.fixture
def samples() -> dict:
    """Three samples, the second with two regions, one of them at the border; levels of rising size."""
    torch.manual_seed(0)
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[1, 4:12, 4:12] = masks[1, 20:, 28:] = True
    maps = torch.rand(3, 32, 32) + 3 * masks
    residuals = {"phi_1": torch.rand(3, 16, 16).half(), "phi_2": 5 * torch.rand(3, 4, 4, requires_grad=True)}
    return {"images": torch.rand(3, 3, 32, 32), "masks": masks, "residuals": residuals, "maps": maps,
            "scores": torch.tensor([1.0, 4.0, 3.0]), "threshold": 2.0}


def row_of(figure, name):
    """The axes of a panel's row, left to right."""
    left = next(ax for ax in figure.axes if ax.get_ylabel().startswith(name))
    bottom = left.get_position().y0
    return [ax for ax in figure.axes if ax.get_position().y0 == bottom and "no unit" not in ax.get_ylabel()]


def scales(figure, name):
    return {ax.images[0].get_clim() for ax in row_of(figure, name)}


def test_one_colour_scale_for_all_residuals_and_one_for_all_maps(samples):
    figure = plots.residual_panel(**samples)
    low, high = plots.limits(samples["residuals"].values())
    assert scales(figure, r"$\phi_{1}$") == scales(figure, r"$\phi_{2}$") == {(low, high)}
    assert scales(figure, "anomaly") == {plots.limits([samples["maps"]])}
    assert high > 4 and low < 0.1  # the scale of phi_2 serves phi_1 too
    bars = {ax.get_ylabel() for ax in figure.axes if "no unit" in ax.get_ylabel()}
    assert bars == {"residual\n(no unit)", "score\n(no unit)"}


def test_a_given_scale_is_the_scale(samples):
    figure = plots.residual_panel(**samples, vmax=10.0, residual_vmax=7.0)
    assert {high for _, high in scales(figure, "anomaly")} == {10.0}
    assert {high for _, high in scales(figure, r"$\phi_{2}$")} == {7.0}


def test_maps_are_drawn_as_they_are(samples):
    figure = plots.residual_panel(**samples)
    for ax, expected in zip(row_of(figure, r"$\phi_{2}$"), samples["residuals"]["phi_2"].detach(), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), expected)


def test_masks_are_outlines_and_only_where_there_is_a_defect(samples):
    figure = plots.residual_panel(**samples)
    for row in ("mask", "anomaly"):
        assert [bool(ax.collections) for ax in row_of(figure, row)] == [False, True, False]
    outline = row_of(figure, "mask")[1].collections[-1]
    rings = [ring for path in outline.get_paths() for ring in path.to_polygons(closed_only=False)]
    assert [(ring[0] == ring[-1]).all() for ring in rings] == [True, True]


def test_the_verdict_says_right_and_wrong_by_symbol_and_colour(samples):
    cells = row_of(plots.residual_panel(**samples), "verdict")
    texts = [ax.texts[0].get_text() for ax in cells]
    assert texts == ["1.00\nnormal\n✓ correct", "4.00\nanomalous\n✓ correct", "3.00\nanomalous\n✗ wrong"]
    grounds = [to_hex(ax.get_facecolor()).upper() for ax in cells]
    assert grounds == [plots.COLOURS["correct"]] * 2 + [plots.COLOURS["wrong"]]


def test_labels_decide_without_masks_and_nothing_is_judged_without_both(samples):
    judged = row_of(plots.residual_panel(**samples | {"masks": None}, labels=[True, True, True]), "verdict")
    assert ["✗" in ax.texts[0].get_text() for ax in judged] == [True, False, False]
    silent = row_of(plots.residual_panel(**samples | {"masks": None}), "verdict")
    assert [ax.texts[0].get_text() for ax in silent] == ["1.00\nnormal", "4.00\nanomalous", "3.00\nanomalous"]


@pytest.mark.parametrize("change", [{"titles": ["one"]}, {"scores": torch.ones(2)}, {"maps": torch.ones(2, 32, 32)}])
def test_a_panel_refuses_arguments_of_different_length(samples, change):
    with pytest.raises(UserError, match=f"{next(iter(change))} has"):
        plots.residual_panel(**samples | change)


def test_limits_span_maps_of_any_shape_and_ignore_one_hot_pixel():
    maps = np.linspace(0, 1, 10_000).reshape(100, 100).copy()
    maps[0, 0] = 1e6
    low, high = plots.limits([maps, np.full((2, 2), -1.0)])
    assert low == -1 and 0.99 < high <= 1
    assert plots.limits([np.zeros((2, 2))]) == (0, 1)


def test_blend_leaves_what_is_low_and_colours_what_is_high():
    image = torch.rand(3, 4, 4)
    values = torch.zeros(4, 4)
    values[0, 0], values[0, 1] = 5.0, 50.0
    blended = plots.blend(image, values, vmin=0, vmax=5, alpha=0.6)
    picture = image.permute(1, 2, 0).numpy()
    top = np.array(matplotlib.colormaps[plots.MAP_COLOURS](1.0)[:3])
    np.testing.assert_array_equal(blended[1:], picture[1:])
    np.testing.assert_allclose(blended[0, :2], 0.4 * picture[0, :2] + 0.6 * top, atol=1e-6)
    assert blended.dtype == np.float32 and blended.min() >= 0 and blended.max() <= 1


def test_blend_does_not_scale_by_image():
    image = torch.full((3, 4, 4), 0.5)
    faint, strong = torch.full((4, 4), 0.1), torch.full((4, 4), 0.9)
    step = [np.abs(plots.blend(image, m, vmin=0, vmax=1) - 0.5).mean() for m in (faint, strong)]
    assert step[0] < step[1] / 3


@pytest.mark.parametrize("call", [
    lambda: plots.blend(torch.rand(3, 4, 4), torch.rand(8, 8), vmin=0, vmax=1),
    lambda: plots.blend(torch.rand(4, 4), torch.rand(4, 4), vmin=0, vmax=1),
    lambda: plots.overlay(torch.rand(3, 4, 4), torch.rand(4, 4), vmin=1, vmax=1),
    lambda: plots.rate_curve({}, "auc"),
])
def test_wrong_arguments_are_one_line(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_overlay_shows_scale_score_and_mask(samples):
    image, values, mask = samples["images"][1], samples["maps"][1], samples["masks"][1]
    figure = plots.overlay(image, values, mask, vmin=0, vmax=2, score=4.0, threshold=2.0, title="photo.png")
    assert [text.get_text() for text in figure.texts] == ["photo.png — anomalous: score 4.00 > 2.00"]
    pictures = [ax for ax in figure.axes if ax.images]
    np.testing.assert_array_equal(pictures[1].images[0].get_array(), plots.blend(image, values, vmin=0, vmax=2))
    assert all(ax.collections for ax in pictures)
    bar = next(ax for ax in figure.axes if ax.get_label() == "<colorbar>")
    assert bar.get_xlim() == (0, 2) and "no unit" in bar.get_xlabel()


class DrawnSet:
    image_size, has_masks = (16, 24), True
    defects = ["good"] * 6 + ["crack"] * 2 + ["hole"]

    def __len__(self):
        return len(self.defects)

    def __getitem__(self, i):
        return torch.full((3, 16, 24), i / 10)

    def mask(self, i):
        mask = torch.zeros(16, 24, dtype=torch.bool)
        mask[2:5, 2:5] = self.defects[i] != "good"
        return mask


def test_a_contact_sheet_shows_every_kind(samples):
    axes = plots.contact_sheet(DrawnSet(), count=5, columns=3).axes
    shown = [(ax.get_title(), bool(ax.collections)) for ax in axes if ax.images]
    assert shown == [("good", False)] * 2 + [("crack", True)] * 2 + [("hole", True)]
    assert len([ax for ax in plots.contact_sheet(DrawnSet(), count=99).axes if ax.images]) == 9


def test_loss_curve_draws_every_epoch():
    lines = plots.loss_curve({"phi_1": [3.0, 2.0, 1.0], "phi_2": torch.tensor([1.0, 0.5, 0.1])}).axes[0].lines
    assert [line.get_xdata().tolist() for line in lines] == [[1, 2, 3]] * 2
    assert len({line.get_linestyle() for line in lines}) == len({line.get_color() for line in lines}) == 2


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_histogram_counts_all_images_and_marks_the_threshold(labels):
    ax = plots.score_histogram([1.0, 1.5, 1.5, 3.0], labels, 2.0).axes[0]
    assert [line.get_xdata()[0] for line in ax.lines] == [2.0]
    assert {patch.get_hatch() or "" for patch in ax.collections} == {"///" if label else "" for label in labels}
    counts = {"normal": labels.count(0), "anomalous": labels.count(1)}
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == [f"{kind} (n = {n})" for kind, n in counts.items() if n]


def test_grouped_bars_show_mean_and_sd():
    frame = pd.DataFrame({"mode": ["mse", "mse", "cos"], "auroc": [0.8, 0.9, 0.95]})
    ax = plots.grouped_bars(frame, "mode", "auroc").axes[0]
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([0.85, 0.95])
    whisker = ax.collections[0].get_segments()[0][:, 1]
    assert whisker == pytest.approx([0.85 - 0.0707107, 0.85 + 0.0707107])
    assert len(ax.collections[0].get_segments()[1]) == 0  # one run: no whisker
    assert [text.get_text() for text in ax.texts] == ["85.0", "95.0"]


def test_line_with_band_draws_the_mean():
    frame = pd.DataFrame({"k": [1, 1, 5], "auroc": [0.8, 0.9, 0.95], "bank": ["a", "a", "a"]})
    ax = plots.line_with_band(frame, "k", "auroc", "bank").axes[0]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 0.85], [5, 0.95]])
    assert plots.line_with_band(frame, "k", "auroc", logx=True).axes[0].get_xscale() == "log"


def test_residuals_are_named_by_their_symbol():
    ax = plots.rate_curve({"phi_1 (.943)": ([0, 1], [0, 1]), "raw_sum": ([0, 1], [0, 1])}).axes[0]
    assert [line.get_label() for line in ax.lines] == [r"$\phi_{1}$ (.943)", "raw_sum", "chance"]
    assert plots.base.symbol("s_2, three combined") == "$s_{2}$, three combined"


def test_precision_is_drawn_as_steps():
    for kind, drawn in {"pr": "steps-pre", "roc": "default", "pro": "default"}.items():
        assert plots.rate_curve({"map": ([0, 1], [0, 1])}, kind).axes[0].lines[0].get_drawstyle() == drawn


def test_all_figures_look_alike_and_leave_no_state(samples):
    before = dict(matplotlib.rcParams)
    figures = [plots.residual_panel(**samples), plots.contact_sheet(DrawnSet()), plots.loss_curve([1.0, 0.5])]
    assert {figure.get_figwidth() for figure in figures} == {plots.WIDTH}
    assert {to_hex(figure.get_facecolor()) for figure in figures} == {"#ffffff"}
    assert figures[2]._repr_png_().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    assert not matplotlib._pylab_helpers.Gcf.figs
    with matplotlib.rc_context():
        plots.style()
        assert matplotlib.rcParams["savefig.facecolor"] == "white"


def test_a_grid_has_a_row_for_each_name_and_one_scale_in_a_row() -> None:
    values = torch.arange(12.0).view(3, 2, 2)
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[1, 2:5, 2:5] = True
    sheet = plots.picture_grid({"photo": torch.rand(3, 3, 8, 8), "error": values}, ["a_b", "c", "d"], masks)
    axes = np.array(sheet.axes).reshape(2, 3)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["photo", "error"]
    assert [ax.get_title() for ax in axes[0]] == ["a b", "c", "d"]
    assert {ax.images[0].get_clim() for ax in axes[1]} == {(0.0, 11.0)}
    # Outlines where the sizes agree and there is something to outline.
    assert [len(ax.collections) > 0 for ax in axes.ravel()] == [False, True, False, False, False, False]


@pytest.mark.parametrize("rows", [{}, {"a": torch.rand(2, 4, 4), "b": torch.rand(3, 4, 4)}, {"a": torch.rand(0, 4, 4)}])
def test_a_grid_of_unequal_or_empty_rows_is_refused(rows: dict) -> None:
    with pytest.raises(UserError, match="give each row the same number"):
        plots.picture_grid(rows)
