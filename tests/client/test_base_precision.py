"""Sites of unlike precision in one federation: what the site's file says, where the strategy lets it."""

import pytest

from fedft import run_file
from fedft.client import allowed_jobs
from fedft.client.site_settings import Policy, Site, SiteConfig, SiteData, SiteModel, SiteServer
from fedft.config import Model
from fedft.errors import PlanRefused
from fedft.server.job import job_of

DIGEST = "0123456789abcdef" * 4
SERVER = SiteServer("127.0.0.1:9092", "/ca.pem", "/server.pub")


def here(name: str, site: SiteConfig, options=None, **model) -> Model:
    """The site's model for a job of a strategy."""
    tables = {"strategy": {"name": name, **(options or {})}, "model": {"dtype": "float32"} | model}
    job = job_of(run_file.from_dict(tables | {"data": {"max_length": 96}}), DIGEST, b"")
    return allowed_jobs.run_config(job, site).model


def site(allowed: Policy | None = None, **model) -> SiteConfig:
    names = ["fedit", "fedkseed", "fedavg", "flora", "fedprox", "zo_fedavg"]
    policy = allowed or Policy(strategies=names)
    return SiteConfig(Site("north"), SERVER, SiteModel("/model", **model), SiteData("/train.jsonl"), policy=policy)


def refused(code: str, *args, **how) -> str:
    with pytest.raises(PlanRefused) as e:
        here(*args, **how)
    assert e.value.code == code, e.value
    assert "\n" not in str(e.value)
    return str(e.value)


def test_a_site_that_says_nothing_has_the_base_as_the_run_says() -> None:
    for said in ({"dtype": "bfloat16"}, {"base_bits": 4}, {"dtype": "float16", "base_bits": 8}):
        found = here("fedit", site(), **said)
        assert (found.dtype, found.base_bits) == (said.get("dtype", "float32"), said.get("base_bits"))
        assert found.id == "/model"


@pytest.mark.parametrize(
    ("own", "dtype", "base_bits", "bits"),
    [
        ({"base_bits": 4}, "float32", 4, 4),
        ({"dtype": "bfloat16"}, "bfloat16", None, 16),  # whoever says a dtype alone wants no packed weights
        ({"dtype": "float16", "base_bits": 8}, "float16", 8, 8),
        ({"dtype": "float32"}, "float32", None, 32),
    ],
)
def test_what_the_site_says_of_precision_replaces_all_that_the_run_says(own, dtype, base_bits, bits) -> None:
    for name, options in (("fedit", {}), ("flora", {}), ("fedprox", {}), ("fedavg", {"space": "lora"})):
        found = here(name, site(**own), options, base_bits=8)
        assert (found.dtype, found.base_bits, found.bits) == (dtype, base_bits, bits)


@pytest.mark.parametrize("own", [{"base_bits": 4}, {"dtype": "bfloat16"}])
@pytest.mark.parametrize(
    ("name", "options"),
    [("fedkseed", {}), ("fedkseed", {"space": "lora"}), ("fedavg", {}), ("zo_fedavg", {"space": "full"})],
)
def test_another_precision_is_refused_where_clients_must_have_one_base(name, options, own) -> None:
    said = refused("base_precision", name, site(**own), options)
    assert f"the run float32: clients of {name} must have one base; leave it out" in said
    assert here(name, site(dtype="float32"), options).dtype == "float32"


def test_what_is_trained_whole_stays_in_float32() -> None:
    for model in ({"modules_to_save": ["lm_head"]}, {"task": "sequence-classification", "labels": ["a", "b"]}):
        assert "in float32" in refused("base_precision", "fedit", site(dtype="bfloat16"), **model)
        assert here("fedit", site(base_bits=8), **model).bits == 8


def test_a_server_asks_for_no_precision_that_the_policy_does_not_list() -> None:
    little = Policy(strategies=["fedit"], bits=[16, 4])
    assert here("fedit", site(little), dtype="bfloat16").bits == 16
    assert here("fedit", site(little), base_bits=4).bits == 4
    for model in ({}, {"base_bits": 8}):
        assert refused("policy_bits", "fedit", site(little), **model).endswith("not allowed here; bits: 16, 4")
    assert here("fedit", site(little, base_bits=8)).bits == 8, "the site's file is its own right"
