"""Loading: files, includes, defaults, extensions, origins, secrets, and where the configuration is found."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from lbplugins.values import Address
from sidecar.config import ConfigError, Loaded, Severity, find_config, load, unreadable_secrets
from sidecar.config.load import VARIABLE
from sidecar.core.policy import Mode

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD = sorted([*(Path(__file__).parent / "good").glob("*.yaml"), *EXAMPLES.glob("*.yaml")])
EDGE = "balancers: {edge: {plugin: memory}}\n"
SHOP = EDGE + "services: {shop: {balancer: edge, probe: {http: /health}}}\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str | bytes, name: str = "lb-sidecar.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def messages(loaded: Loaded) -> str:
    return "\n".join(map(str, loaded.problems))


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_files_and_every_example_load_without_a_problem(path: Path) -> None:
    loaded = load(path)

    assert loaded.config is not None and loaded.problems == (), messages(loaded)
    assert loaded.exit_code == 0


@pytest.mark.parametrize(
    ("content", "words", "line"),
    [
        (b"", ["empty", "lb-sidecar init"], 1),
        (b"# only a comment\n", ["empty"], 1),
        (b"---\n...\n", ["empty"], 1),
        (b"mode: act\nlog: {level: \xff}\n", ["UTF-8", "0xff"], 2),
        (b"mode: act\nlog: \x00\n", ["control character"], 2),
        (b"a: " + b"x" * (1 << 20), ["1 MiB", "include"], 1),
        (b"mode: 'act\n", ["inside a bracket or a quote", "close it"], 2),
        (b"services: {shop: [\n", ["close it"], 2),
    ],
    ids=["empty", "comment", "null", "latin1", "nul", "big", "quote", "bracket"],
)
def test_a_file_that_is_no_configuration_is_one_message(write: Write, content: bytes, words: list[str], line: int) -> None:
    loaded = load(write(content))

    assert len(loaded.problems) == 1 and loaded.exit_code == 2
    assert all(word in loaded.problems[0].message for word in words), messages(loaded)
    assert loaded.problems[0].line == line


def test_missing_file_and_directory_are_told(tmp_path: Path) -> None:
    assert "no such file" in messages(load(tmp_path / "none.yaml"))
    assert "directory" in messages(load(tmp_path))
    assert "cannot be read" in messages(load(Path("a\0b")))


def test_unreadable_file_is_told(write: Write) -> None:
    path = write(SHOP)
    path.chmod(0)
    if os.geteuid() != 0:
        assert "not readable by this user" in messages(load(path))
        return
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        folder.chmod(0o755)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads in the parent; the child only reads a file
        pid = os.fork()
    if pid == 0:  # a child loses root's rights, so that this process keeps them
        os.setuid(65534)
        os._exit(0 if "not readable by this user" in messages(load(path)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_all_problems_are_told_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = (
        "mode: ac\nlog: {level: x}\n"
        + EDGE
        + "services:\n  shop: {balancer: edge, probe: {http: h, port: 0}, fal: 1}\n  cart: {balancer: x}\n"
    )

    loaded = load(write(text))

    assert [problem.path for problem in loaded.problems if problem.severity is Severity.ERROR] == [
        "mode", "log.level", "services.shop.probe.http", "services.shop.probe.port", "services.shop.fal", "services.cart.balancer",
    ]  # fmt: skip


def test_yaml_1_2_words_are_words(write: Write) -> None:
    loaded = load(
        write(EDGE + "services: {shop: {balancer: edge, probe: {http: /h}, policy: {slow: off}, labels: {a: yes, b: on, c: no}}}\n")
    )

    assert loaded.require().services["shop"].labels == {"a": "yes", "b": "on", "c": "no"}
    assert loaded.require().services["shop"].policy.slow == "off"


def test_extensions_are_ignored_everywhere_but_in_the_users_own_words(write: Write) -> None:
    text = (
        "x-a: 1\nlog: {x-b: 2}\nbalancers: {edge: {plugin: memory, pools: {x-pool: {x-s: '10.0.0.1:80'}}}, x-c: {}}\n"
        "services:\n  x-t: &t {balancer: edge}\n"
        "  shop: {<<: *t, x-d: 3, probe: {x-e: 4, http: /h, headers: {x-mine: '1'}, expect: {header: {x-up: '1'}, json: {x-j: 1}}}}\n"
    )

    config = load(write(text)).require()

    assert list(config.services) == ["shop"] and list(config.balancers) == ["edge"]
    assert config.services["shop"].probe[0].headers == {"x-mine": "1"}
    assert config.services["shop"].probe[0].expect.header == {"x-up": "1"}
    assert config.services["shop"].probe[0].expect.json_values == {"x-j": 1}
    assert "x-pool" in config.balancers["edge"].options.model_dump()["pools"]


def test_merged_keys_yield_to_the_blocks_own(write: Write) -> None:
    text = EDGE + "x-p: &p {fall: 7, rise: 3}\nservices: {shop: {balancer: edge, probe: {http: /h}, policy: {<<: [*p], rise: 5}}}\n"

    policy = load(write(text)).require().services["shop"].policy

    assert (policy.fall, policy.rise) == (7, 5)


# ---- defaults ----


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ("", {"http": "/health", "interval": 2.0, "port": 81}),
        ("probe: {port: 82}", {"http": "/health", "interval": 2.0, "port": 82}),
        ("probe: {http: /up}", {"http": "/up", "interval": 2.0, "port": 81}),
        ("probe: {tcp: true}", {"http": None, "tcp": True, "interval": 2.0, "port": None}),
        ("probe: [{http: /up}]", {"http": "/up", "interval": None, "port": None}),
    ],
)
def test_a_probe_is_laid_over_the_default_of_its_kind(write: Write, own: str, wanted: dict[str, object]) -> None:
    text = EDGE + f"defaults: {{probe: {{http: /health, interval: 2s, port: 81}}}}\nservices: {{shop: {{balancer: edge, {own}}}}}\n"

    spec = load(write(text)).require().services["shop"].probe[0]

    assert {key: getattr(spec, key) for key in wanted} == wanted


def test_policy_and_labels_are_laid_over_the_defaults_key_by_key(write: Write) -> None:
    text = EDGE + (
        "defaults: {probe: {http: /h}, policy: {fall: 7, max_ejected: {hard: 40%}}, labels: {team: a, tier: b}, mode: observe}\n"
        "services:\n  shop: {balancer: edge, policy: {rise: 5, max_ejected: {soft: 10%}}, labels: {team: c}}\n"
        "  cart: {balancer: edge, mode: act}\n"
    )

    services = load(write(text)).require().services

    policy = services["shop"].policy
    assert (policy.fall, policy.rise, policy.max_ejected.hard, policy.max_ejected.soft) == (7, 5, 0.4, 0.1)
    assert services["shop"].labels == {"team": "c", "tier": "b"}
    assert (services["shop"].mode, services["cart"].mode) == (Mode.OBSERVE, Mode.ACT)


def test_origins_say_where_each_value_comes_from(write: Write) -> None:
    path = write(
        EDGE
        + "defaults:\n  probe: {http: /h, interval: 2s}\n"
        + "services:\n  shop:\n    balancer: edge\n    policy: {window: observe, hold_down: 7s}\n"
    )

    origins = load(path).origins

    assert origins["services.shop.balancer"] == f"{path}:6"
    assert origins["services.shop.probe.interval"] == f"defaults.probe, {path}:3"
    assert origins["services.shop.policy.fall"] == "default"
    assert origins["services.shop.policy.window.mode"] == f"{path}:7"
    assert origins["services.shop.policy.window.probes"] == "default"
    assert origins["services.shop.policy.hold_down.first"] == f"{path}:7"
    assert origins["services.shop.policy.hold_down.max"] == "default"
    assert origins["mode"] == "default"


# ---- include ----


def test_included_files_add_their_balancers_and_services(write: Write, tmp_path: Path) -> None:
    path = write("include: [conf.d/*.yaml, more.yaml]\n" + SHOP)
    one = write("services: {cart: {balancer: web, probe: {http: /h}}}\n", "conf.d/1.yaml")
    two = write("balancers: {web: {plugin: memory}}\nlog: {level: debug}\n", "conf.d/2.yaml")
    more = write("services: {mail: {balancer: web, probe: {tcp: true}}}\n", "more.yaml")

    loaded = load(path)

    assert loaded.problems == () and list(loaded.require().services) == ["shop", "cart", "mail"]
    assert loaded.files == (path, one, two, more)
    assert loaded.origins["log.level"] == f"{two}:2"


def test_problems_in_included_files_carry_their_own_name_and_line(write: Write) -> None:
    path = write("include: conf.d/*.yaml\n" + SHOP)
    one = write("\nservices:\n  shop: {balancer: edge}\n  cart: {balancer: edge, fall: 1}\ninclude: x.yaml\n", "conf.d/1.yaml")
    two = write("mode: act\nservices: {mail: [}\n", "conf.d/2.yaml")

    loaded = load(path)

    told = {(problem.file, problem.line) for problem in loaded.problems if problem.severity is Severity.ERROR}
    assert told == {(str(one), 3), (str(one), 4), (str(one), 5), (str(two), 2)}, messages(loaded)
    assert f"defined in {path}:3 already" in messages(loaded)


def test_a_singular_key_may_stand_in_one_file_only(write: Write) -> None:
    path = write("include: more.yaml\nmode: act\n" + SHOP)
    write("mode: observe\n", "more.yaml")

    assert f"`mode` stands in {path}:2 already" in messages(load(path))


def test_an_included_file_must_exist_but_a_pattern_may_match_nothing(write: Write) -> None:
    assert load(write("include: conf.d/*.yaml\n" + SHOP)).problems == ()
    missing = load(write("include: conf.d/a.yaml\n" + SHOP))
    assert "no such file" in messages(missing)
    assert [(problem.path, problem.line) for problem in missing.problems] == [("include", 1)]


def test_a_file_that_includes_itself_is_read_once(write: Write) -> None:
    loaded = load(write("include: '*.yaml'\n" + SHOP))

    assert loaded.problems == () and len(loaded.files) == 1


# ---- paths, secrets, finding ----


def test_relative_paths_start_at_the_configurations_folder(write: Write, tmp_path: Path) -> None:
    text = EDGE + "state: {dir: state}\napi: {socket: a.sock}\nservices:\n"
    text += "  shop: {balancer: edge, probe: {http: /h}, instances: {file: t.json}}\n"
    text += "  cart: {balancer: edge, probe: {http: /h}, instances: {file: {path: /abs.json}}}\n"

    config = load(write(text)).require()

    assert config.state.dir == tmp_path / "state" and config.api.socket == tmp_path / "a.sock"
    files = [service.instances.file.path for service in config.services.values() if service.instances and service.instances.file]
    assert files == [tmp_path / "t.json", Path("/abs.json")]


def test_secrets_are_read_late_and_never_shown(write: Write, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret-token-number-one\n")
    text = (
        SHOP + f"api: {{tokens: {{a: {{secret: 'file:{token}'}}, b: {{secret: 'env:B_TOKEN'}}, c: {{secret: 'file:/nowhere/token'}}}}}}\n"
    )

    loaded = load(write(text))

    assert loaded.problems == () and set(loaded.secrets) == {f"api.tokens.{name}.secret" for name in "abc"}
    tokens = loaded.require().api.tokens
    assert tokens["a"].secret.read() == "s3cret-token-number-one"
    assert tokens["b"].secret.read({"B_TOKEN": "s3cret-token-2"}) == "s3cret-token-2"
    assert repr(tokens["a"].secret) == "***" and "s3cret" not in repr(loaded)
    (weak, _) = unreadable_secrets(loaded, {"B_TOKEN": "a-word-of-many-letters"[:21]})
    assert "weaker than 128 bits" in weak.message
    problems = unreadable_secrets(loaded, {"B_TOKEN": "short"})
    assert [(problem.path, problem.line) for problem in problems] == [("api.tokens.b.secret", 3), ("api.tokens.c.secret", 3)]
    assert "openssl rand" in problems[0].message and "short" not in problems[0].message.replace("shorter", "")
    assert unreadable_secrets(loaded, {})[0].message.startswith("env:B_TOKEN: the environment has no B_TOKEN")


def test_an_inline_secret_is_refused_without_being_repeated(write: Write) -> None:
    loaded = load(write(SHOP + "api: {tokens: {a: {secret: swordfish-and-more}}}\n"))

    assert "must not stand" in messages(loaded) and "swordfish" not in messages(loaded)


def test_open_listening_needs_tls_and_a_token_and_then_loads(write: Write) -> None:
    text = SHOP + "api: {listen: '[::]:8642', tls: {cert: a.pem, key: b.pem}, tokens: {a: {secret: 'env:A'}}}\n"

    assert load(write(text)).require().api.listen == Address("::", 8642)


def test_the_hash_follows_the_meaning_not_the_text(write: Write) -> None:
    plain = load(write(SHOP))
    assert load(write("# a comment\nmode: act\n" + SHOP)).hash == plain.hash
    assert load(write("mode: observe\n" + SHOP)).hash != plain.hash
    assert len(plain.hash) == 16


def test_the_configuration_is_found_by_argument_variable_or_default(tmp_path: Path) -> None:
    assert find_config("a.yaml", {VARIABLE: "b.yaml"}) == Path("a.yaml")
    assert find_config(None, {VARIABLE: "b.yaml"}) == Path("b.yaml")
    assert find_config(None, {}, tmp_path) == tmp_path


def test_no_configuration_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lb-sidecar init") as caught:
        find_config(None, {}, tmp_path / "none.yaml")

    assert VARIABLE in str(caught.value)


def test_require_raises_every_error(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write("mode: x\nlog: 3\n" + SHOP)).require()

    assert [problem.path for problem in caught.value.problems] == ["mode", "log"]


def test_many_problems_are_cut_with_a_last_word(write: Write) -> None:
    services = "".join(f"  s{number}: {{balancer: edge, probe: {{http: h{number}}}}}\n" for number in range(300))

    loaded = load(write(EDGE + "services:\n" + services))

    assert len(loaded.problems) == 201 and "100 more problems" in loaded.problems[-1].message
    assert loaded.config is None


def test_a_thousand_services_load(write: Write) -> None:
    services = "".join(f"  s{number}: {{balancer: edge, probe: {{http: /health}}}}\n" for number in range(1000))

    assert len(load(write(EDGE + "services:\n" + services)).require().services) == 1000


def test_a_foreign_plugin_that_cannot_be_used_is_told_and_hurts_no_other(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write("[lbplugins]\nbroken = no_such_module_here:X\nodd = lbplugins.values:Address\n", "acme-1.0.dist-info/entry_points.txt")
    write("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n", "acme-1.0.dist-info/METADATA")
    monkeypatch.syspath_prepend(str(tmp_path))
    services = "services: {s: {balancer: c, probe: {http: /h}}}\n"

    fine = load(write("balancers: {c: {plugin: memory}}\n" + services))
    told = messages(load(write("balancers: {a: {plugin: broken}, b: {plugin: odd}, c: {plugin: memory}}\n" + services)))

    assert fine.problems == ()
    assert "'broken' cannot be imported: ModuleNotFoundError" in told and "'odd' is no lbplugins.api.Balancer" in told
