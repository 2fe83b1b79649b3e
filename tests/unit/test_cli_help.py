"""What the command says about itself, and what it calls wrong usage."""

import re
from pathlib import Path

import pytest
from tests.support.command import commands, pii_vault_command, pii_vault_here

SECRET = "hunter2-SECRET"
ARN = "arn:aws:kms:eu-west-1:111122223333:key/0b1f7e52-3c1d-4a0e-9d8e-2f6a7c5b4d31"

COMMANDS = [
    *("db upgrade", "db current", "db check"),
    "onboard",
    *("tenant add", "tenant list", "tenant show", "tenant set", "tenant suspend", "tenant resume"),
    "tenant erase",
    *("key list", "key validate", "key rotate", "key evict", "key deactivate", "key compromise", "key destroy"),
    "doctor",
    *("index status", "index build", "index rotate", "index drop", "index plan"),
    *("rotate", "rewrap", "reencrypt", "coverage", "report"),
    *("adopt status", "adopt next", "adopt rollback", "adopt fallback"),
    *("audit log", "audit verify", "audit anchor"),
    "kms cost",
    *("kms history", "kms rotation"),
    *("inspect", "demo", "version"),
]
GROUPS = ["", "db", "tenant", "key", "index", "adopt", "audit", "kms"]


def help_of(words: str) -> str:
    done = pii_vault_here(*words.split(), "--help", COLUMNS="80")
    assert (done.code, done.err) == (0, ""), words
    return done.out


def test_these_are_all_the_commands_there_are() -> None:
    assert sorted(commands()) == sorted(COMMANDS)


def test_every_command_has_a_help_of_its_own() -> None:
    for name in COMMANDS:
        assert f"Usage: pii-vault {name}" in help_of(name)


def test_the_help_lists_commands_in_the_order_in_which_one_needs_them() -> None:
    listed = re.findall(r"^  (\w+)  ", help_of("").partition("Commands:")[2], re.MULTILINE)
    assert listed == [
        *(
            "db",
            "onboard",
            "tenant",
            "key",
            "doctor",
            "index",
            "rotate",
            "rewrap",
            "reencrypt",
            "coverage",
            "report",
            "adopt",
            "audit",
            "kms",
            "inspect",
            "demo",
            "version",
        )
    ]
    assert listed == list(dict.fromkeys(name.split()[0] for name in COMMANDS))


@pytest.mark.parametrize("words", GROUPS + COMMANDS)
def test_a_help_is_made_of_whole_sentences_and_fits_80_columns(words: str) -> None:
    shown = help_of(words)
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert "..." not in re.sub(r"COMMAND \[ARGS\]\.\.\.|\[TENANT\]\.\.\.", "", shown)
    usage, *blocks = shown.strip().split("\n\n")
    assert usage.startswith("Usage: ")
    for block in blocks:
        listed = re.fullmatch(r"(?:Arguments|Options|Commands):\n(.*)", block, re.DOTALL)
        for entry in re.split(r"\n  (?=\S)", listed[1]) if listed else [block]:
            # What typer adds: [required], [default: 1; x>=0].
            sentence = re.sub(r"\s*\[[^\[]*\]$", "", " ".join(entry.split()))
            assert sentence.endswith("."), entry


def test_every_option_and_argument_says_what_it_is_and_no_flag_shows_its_negation_by_mistake() -> None:
    for name, command in commands().items():
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)
            assert not parameter.secondary_opts or parameter.name == "follow_kms", (name, parameter.name)


def test_help_does_not_show_what_the_environment_holds() -> None:
    held = {"PII_VAULT_DATABASE_URL": f"sqlite:///{SECRET}", "PII_VAULT_KMS": SECRET, "PII_VAULT_ACTOR": SECRET}
    for name in COMMANDS:
        done = pii_vault_here(*name.split(), "--help", **held)
        assert (done.code, SECRET in done.out) == (0, False), name
    # A process of its own, because a default may be read while a module is imported.
    done = pii_vault_command("key", "rotate", "--help", **held)
    assert (done.code, SECRET in done.out) == (0, False)
    assert "PII_VAULT_DATABASE_URL" in done.out


@pytest.mark.parametrize("group", GROUPS)
def test_without_a_command_it_prints_the_list_of_commands(group: str) -> None:
    done = pii_vault_here(*group.split())
    assert (done.code, done.out) == (2, "")
    listed = set(re.findall(r"^  (\w+)  ", done.err.partition("Commands:")[2], re.MULTILINE))
    words = [name.removeprefix(group).split()[0] for name in COMMANDS if name.startswith(group)]
    assert listed == set(words)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("nonsense", "No such command"),
        ("db nonsense", "No such command"),
        ("db", "Usage: pii-vault db"),
        ("key rotate", "Missing argument 'TENANT'"),
        ("key rotate acme --nonsense", "No such option: --nonsense"),
        ("key rotate acme another", "unexpected extra argument"),
        ("rotate", "one tenant is rotated with `pii-vault key rotate TENANT`"),
        ("rotate acme", "unexpected extra argument"),
        ("rotate --due --ahead -1", "--ahead"),
        ("rotate --due --ahead 99999999999", "--ahead"),
        ("onboard", "Missing argument 'TENANT'"),
        ("onboard acme --account 111122223333", "say where the customer's KMS key is"),
        (f"onboard acme --key {ARN} --create-key", "give one of them"),
        (f"onboard acme --key {ARN} --region us-east-1", "not those of --key"),
        ("onboard acme --key alias/mine", "the full ARN of a KMS key"),
        ("tenant add", "Missing argument 'TENANT'"),
        (f"tenant add acme --key {ARN} --external-id x", "--external-id belongs to --role-arn"),
        ("tenant add acme --role-arn x", "belong to --key"),
        ("tenant add acme --external-id x", "belong to --key"),
        ("tenant add acme --shared-key", "belong to --key"),
        ("tenant add acme --rotation-days x", "a number of days or the word default"),
        ("tenant add acme --rotation-days -1", "a number of days or the word default"),
        ("tenant set acme", "say what to change"),
        ("tenant set acme --rotation-days ten", "a number of days or the word default"),
        ("tenant set acme --rotation-days \u0663", "a number of days or the word default"),
        ("key compromise acme", "Missing argument 'VERSION'"),
        ("key compromise acme one", "VERSION"),
        ("key compromise acme 1", "give --yes"),
        ("key destroy acme 1", "Missing option '--metadata'"),
        ("index", "Usage: pii-vault index"),
        ("index status acme", "Missing option '--metadata'"),
        ("index status --metadata m:B", "name one tenant, or give --all"),
        ("index build acme --all --metadata m:B", "name one tenant, or give --all"),
        ("index rotate --metadata m:B", "Missing argument 'TENANT'"),
        ("index rotate acme", "Missing option '--metadata'"),
        ("index drop acme patients.email", "Missing argument 'SLOT'"),
        ("index drop acme patients.email 15", "SLOT"),
        ("index drop acme patients.email email", "SLOT"),
        ("index plan", "Missing option '--rows'"),
        ("index plan --rows -1", "--rows"),
        ("index plan --rows 9223372036854775808", "--rows"),
        ("index plan --rows 5 --distinct 0", "--distinct"),
        ("index plan --rows 5 --others -1", "--others"),
        ("doctor", "Missing argument 'TENANT'"),
        ("doctor acme --wait -1", "--wait"),
        ("doctor acme --wait 301", "--wait"),
        ("rewrap", "name one tenant, or give --all"),
        ("rewrap acme --all", "name one tenant, or give --all"),
        (f"rewrap acme --from {ARN}", "belong to --all"),
        ("rewrap acme --rate 3", "belong to --all"),
        ("rewrap acme --workers 3", "belong to --all"),
        (f"rewrap acme --to {ARN} --to-platform", "not both"),
        ("rewrap acme --role-arn x", "belong to --to"),
        ("rewrap acme --external-id x", "belong to --to"),
        ("rewrap acme --to-platform --role-arn x", "belong to --to"),
        (f"rewrap acme --to {ARN} --external-id x", "--external-id belongs to --role-arn"),
        (f"rewrap --all --to {ARN}", "need --from"),
        ("rewrap --all --to-platform", "need --from"),
        (f"rewrap --all --from {ARN} --to {ARN} --role-arn x", "are for one tenant"),
        ("rewrap --all --shared-key", "belongs to --to"),
        ("rewrap acme --to-platform --shared-key", "belongs to --to"),
        ("rewrap --all --rate 0", "above 0"),
        ("rewrap --all --rate -1", "above 0"),
        ("rewrap --all --rate nan", "above 0"),
        ("rewrap --all --rate inf", "above 0"),
        ("rewrap --all --workers 0", "--workers"),
        ("rewrap --all --workers 9", "--workers"),
        ("coverage acme", "Missing option '--metadata'"),
        ("coverage --metadata m:B --json --openmetrics", "give --json or --openmetrics, not both"),
        ("report", "Missing argument 'TENANT'"),
        ("report acme --processes 0", "--processes"),
        ("report acme --tenant-column tenant_id", "--tenant-column belongs to --metadata"),
        ("adopt status", "Missing option '--metadata'"),
        ("adopt next --metadata m:B --tenant-column t", "Missing argument 'COLUMN'"),
        ("adopt next people.email --metadata m:B", "say whose rows are whose"),
        ("adopt rollback people.email --metadata m:B --tenant-column t --tenant acme", "say whose rows are whose"),
        ("adopt next people.email --metadata m:B --tenant acme --rate 0", "--rate"),
        ("adopt next people.email --metadata m:B --tenant acme --quiet -1", "--quiet"),
        ("adopt fallback people.email --metadata m:B --tenant acme", "name the days, or give --end"),
        ("adopt fallback people.email --metadata m:B --tenant acme --days 3 --end", "name the days, or give --end"),
        ("adopt fallback people.email --metadata m:B --tenant acme --days 91", "--days"),
        ("audit log acme --after -1", "--after"),
        ("audit log acme --limit 0", "--limit"),
        ("kms", "Usage: pii-vault kms"),
        ("kms cost --tenants 5", "Missing option '--processes'"),
        ("kms cost --tenants 5 --processes 0", "--processes"),
        ("kms cost --tenants 0 --processes 1", "--tenants"),
        ("kms cost --tenants 9999999999 --processes 1", "--tenants is a number up to"),
        ("kms cost --tenants 5 --processes 1 --rotation-days 0", "--rotation-days"),
        ("kms cost --tenants 5 --processes 1 --starts-per-day -1", "--starts-per-day is a number up to"),
        ("kms cost --tenants 5 --processes 1 --starts-per-day nan", "--starts-per-day is a number up to"),
        ("kms cost --tenants 5 --processes 1 --scopes-per-second inf", "--scopes-per-second is a number up to"),
        ("kms cost --tenants 5 --processes 1 --ttl 0", "say --scopes-per-second"),
        ("kms cost --tenants 5 --processes 1 --ttl 0.5", "say --ttl 0"),
        ("kms cost --tenants 5 --processes 1 --region Ireland", "the name of an AWS region, such as eu-west-1"),
        ("inspect", "Missing argument 'VALUE'"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_help(arguments: str, reason: str, tmp_path: Path) -> None:
    settings = {
        "PII_VAULT_DATABASE_URL": f"sqlite:///{tmp_path / 'keys.sqlite3'}",
        "PII_VAULT_KMS": f"local:{tmp_path / 'kms.json'}",
    }
    done = pii_vault_here(*arguments.split(), **settings)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    if "give --yes" not in reason:
        assert "--help" in done.err
    if arguments not in GROUPS:
        assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.glob("keys*"))


def test_wrong_usage_is_no_traceback_in_a_process_either() -> None:
    done = pii_vault_command("rewrap")
    assert done.code == 2
    assert done.err == "pii-vault: name one tenant, or give --all (see `pii-vault rewrap --help`)\n"
