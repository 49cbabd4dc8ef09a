from __future__ import annotations

from uad_core import ledger, papers
from uad_core.datasets.catalogue import CATALOGUE


def test_every_number_is_a_fraction_with_a_mark_and_a_source():
    known = {info.name for info in CATALOGUE}
    for entry in (*papers.PUBLISHED, *(p for table in papers.ABLATIONS.values() for p in table)):
        assert entry.mark in papers.MARKS and entry.source and entry.dataset in known
        assert entry.metrics and set(entry.metrics) <= set(ledger.METRICS)
        assert all(0.3 < value <= 1 for value in entry.metrics.values())


def test_own_numbers_are_those_of_the_five_papers():
    own = {p.method for p in papers.PUBLISHED if p.own}
    assert own <= set(papers.PAPERS)
    assert papers.published("hlgfa", "mvtec_ad")[0].metrics == {"image_auroc": 0.975, "pixel_auroc": 0.979}
    assert papers.published("hfr", "mvtec_ad") == papers.published("rlr", "visa") == ()


def test_peers_are_never_the_papers_own_claim():
    assert {p.method for p in papers.peers("fashion_mnist")} == {"RD4AD"}
    assert not any(p.own for p in papers.peers("mvtec_ad"))
    assert {p.category for p in papers.peers("mvtec_ad", "screw")} == {"screw"}
