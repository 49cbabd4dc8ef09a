"""Which categories the texts of --dataset and --category name."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_category

from uad_core import datasets
from uad_core.datasets.selection import select
from uad_core.errors import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two folders of data, with a category called beta in both, and odd ones: commas in a name, or in a category's."""
    folder = tmp_path_factory.mktemp("data")
    plain = ("one/alpha", "one/beta", "two/beta", "two/gamma", "deep/one/alpha")
    for name in (*plain, "x,y/alpha", "odd/a", "odd/a,b = c", "odd/x"):
        write_category(folder / name, train=1)
    return folder


def names(dataset: object, category: str, root: Path | None = None) -> list[str]:
    return [member.name for member in select(str(dataset), category, root)]


def said(*arguments: object) -> str:
    with pytest.raises(UserError) as error:
        select(*map(str, arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_categories_are_named_once_and_known(place) -> None:
    one = place / "one"
    assert names(one, "all") == ["alpha", "beta"] and names(one, "beta, alpha") == ["beta", "alpha"]
    assert names(one, "beta") == ["beta"] and names(one, "one/beta,alpha") == ["beta", "alpha"]
    for odd in ("", ",", "alpha,alpha", "alpha,one/alpha"):
        assert said(one, odd).startswith(f"--category {odd!r} names no category or one twice")
    assert said(one, "alpha,gamma") == f"no category of {one} is called 'gamma': choose among alpha, beta"


def test_a_category_whose_name_has_commas_is_found_among_others(place) -> None:
    odd = place / "odd"
    assert names(odd, "a,b = c") == ["a,b = c"] and names(odd, "a,b = c,x") == ["a,b = c", "x"]
    assert names(odd, "x, a,b = c") == ["x", "a,b = c"] and names(odd, "x,odd/a,b = c,a") == ["x", "a,b = c", "a"]
    assert names(odd, "all") == ["a", "a,b = c", "x"]
    assert select(f"{odd},", "x") == select(str(odd), "x")
    assert said(odd, "a,b = d,x") == f"no category of {odd} is called 'b = d': choose among a, a,b = c, x"
    assert said(odd, "x,a,b = c,a,b = c").endswith("names no category or one twice: write such as a,a,b = c")
    assert said(odd, "," * 5000).endswith("names no category or one twice: write such as a,a,b = c")
    both = f"{odd},{place / 'one'}"
    assert [member.qualified for member in select(both, "odd/a,b = c")] == ["odd/a,b = c"]
    assert names(both, "alpha,a,b = c,odd/x") == ["one/alpha", "odd/a,b = c", "odd/x"]


def test_categories_of_several_data_sets_are_qualified(place) -> None:
    both = f"{place / 'one'}, {place / 'two'}"
    assert names(both, "all") == ["one/alpha", "one/beta", "two/beta", "two/gamma"]
    assert names(both, "gamma,one/beta") == ["two/gamma", "one/beta"]
    assert names(both, "alpha,one/beta") == ["alpha", "beta"]  # of one data set only
    (member,) = select(both, "gamma")
    assert (member.source, member.dataset, member.name) == (str(place / "two"), "two", "gamma")
    assert said(both, "beta") == "--category 'beta' is in one and two: write such as one/beta"
    assert said(both, "two/alpha").endswith("choose among one/alpha, one/beta, two/beta, two/gamma")


def test_a_folder_with_a_comma_is_one_data_set(place) -> None:
    (member,) = select(str(place / "x,y"), "all")
    assert (member.dataset, member.name) == ("x,y", "alpha")


def test_data_sets_are_known_and_told_apart_by_name(place) -> None:
    same = f"{place / 'one'},{place / 'deep/one'}"
    assert said(same, "all").startswith(f"--dataset {same!r} names two data sets called one")
    assert said(",", "all").startswith("--dataset ',' names no data set")
    assert "did you mean mvtec_ad?" in said("procedural,mvtec", "all")


def test_all_of_several_named_data_sets_are_those_that_are_here(tmp_path) -> None:
    (tmp_path / "mvtec_ad/bottle").mkdir(parents=True)
    drawn = [f"procedural/{name}" for name in datasets.categories("procedural")]
    assert names("procedural,mvtec_ad", "all", tmp_path) == [*drawn, "mvtec_ad/bottle"]
    found = said("procedural,visa", "all", tmp_path)
    assert found == f"no category of visa is in {tmp_path}: run `uad data visa`, or leave it out of --dataset"
