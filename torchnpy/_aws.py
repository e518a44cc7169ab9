"""Where the settings of AWS come from, for torchnpy.doctor: asks no service, tells no secret."""

from __future__ import annotations

import configparser
import os
import re

# The library does not tell a variable that is empty from one that is not set.
_env = os.environ.get


def _sections_of_kind(sections: dict[str, dict[str, str]], kind: str) -> dict[str, dict[str, str]]:
    """By name: "x" of ``[profile x]`` and ``[profile "x"]``."""
    found = {}
    for header, section in sections.items():
        first, _, name = header.partition(" ")
        if first == kind and name:
            found[name.strip().strip("\"'")] = section
    return found


class AwsSettings:
    """The settings of a client without options, by the rules of csrc/transport/credentials.cpp.

    Attributes:
        profile: The profile's name.
        problems: What a load from S3 would fail for, a line each; nothing of them is a secret.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        variable = "AWS_PROFILE" if _env("AWS_PROFILE") else "AWS_DEFAULT_PROFILE"
        wanted = _env(variable)
        self.profile = wanted or "default"
        self.credentials_path, credentials = self._read(
            "AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"
        )
        self.config_path, config = self._read("AWS_CONFIG_FILE", "~/.aws/config")
        profiles = {"default": config["default"]} if "default" in config else {}
        profiles |= _sections_of_kind(config, "profile")
        if wanted and wanted not in profiles and wanted not in credentials:
            self.problems.append(
                f"{variable}: expected a profile of {self.config_path} or {self.credentials_path} "
                f'but found "{wanted}"; add it there, or name one that is there'
            )
        self.credentials = credentials.get(self.profile, {})
        self.config = profiles.get(self.profile, {})
        services = _sections_of_kind(config, "services")
        self.services = services.get(self.find("services") or "", {})

    def _read(self, variable: str, default: str) -> tuple[str, dict[str, dict[str, str]]]:
        path = os.path.expanduser(_env(variable) or default)
        # No section gives defaults for the others.
        parser = configparser.RawConfigParser(default_section="", strict=False)
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                parser.read_file(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.problems.append(f"{path}: expected a readable file but found: {error.strerror}")
        except configparser.Error as error:
            # Its words have the line, which may hold a secret.
            lines = [number for number, _ in getattr(error, "errors", [])]
            line = getattr(error, "lineno", lines[0] if lines else None)
            self.problems.append(
                f"{path}: expected `[section]` and `key = value` but found something else in line "
                f"{line}; correct it"
            )
        return path, {name: dict(parser[name]) for name in parser.sections()}

    def find(self, *keys: str) -> str | None:
        """The first that the profile has, the credentials file first."""
        values = (section.get(key) for key in keys for section in (self.credentials, self.config))
        return next(filter(None, values), None)

    def find_credentials(self) -> str:
        """The first place that has credentials for a client without options. None is asked."""
        name = f'profile "{self.profile}"'
        token = _env("AWS_WEB_IDENTITY_TOKEN_FILE") or self.find("web_identity_token_file")
        container = "AWS_CONTAINER_CREDENTIALS_"
        disabled = (_env("AWS_EC2_METADATA_DISABLED") or "").lower() == "true"
        has_role = self.find("role_arn") and not self.find("web_identity_token_file")
        has_container = _env(f"{container}RELATIVE_URI") or _env(f"{container}FULL_URI")
        places = [
            (_env("AWS_ACCESS_KEY_ID"), "the environment (AWS_ACCESS_KEY_ID)"),
            (has_role, f"role_arn of {name}"),
            (token, "a web identity (AWS_WEB_IDENTITY_TOKEN_FILE or the profile's)"),
            (self.find("sso_account_id", "sso_role_name"), f"SSO of {name}"),
            (self.credentials.get("aws_access_key_id"), f"{name} of {self.credentials_path}"),
            (self.find("login_session"), f"login_session of {name}"),
            (self.find("credential_process"), f"credential_process of {name}"),
            (self.config.get("aws_access_key_id"), f"{name} of {self.config_path}"),
            (has_container, "the container's credentials service"),
            (not disabled, "EC2's instance metadata, if this machine has it (not asked)"),
        ]
        found = next((source for has_some, source in places if has_some), "none")
        way = found.partition(" ")[0]
        if way == "the" and _env("AWS_ACCESS_KEY_ID") and not _env("AWS_SECRET_ACCESS_KEY"):
            self.problems.append(
                "AWS_ACCESS_KEY_ID is set but AWS_SECRET_ACCESS_KEY is not; set both"
            )
        if way == "a" and not os.path.isfile(token or ""):
            self.problems.append(
                f"web identity: expected a file with a token but found none at {token}; mount it, "
                "or unset AWS_WEB_IDENTITY_TOKEN_FILE"
            )
        if way in ("SSO", "login_session") or (way == "role_arn" and self.find("mfa_serial")):
            self.problems.append(
                f"{name} takes its credentials by SSO, a login or an MFA code, which torchnpy "
                f'cannot; pass Client(credentials=boto3.Session(profile_name="{self.profile}")'
                ".get_credentials().get_frozen_credentials)"
            )
        return found

    def find_region(self) -> str:
        named = _env("AWS_REGION") or _env("AWS_DEFAULT_REGION") or self.find("region")
        return named or "us-east-1 (the default)"

    def find_endpoint(self) -> str:
        ignored = _env("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") or ""
        ignored_by_profile = self.find("ignore_configured_endpoint_urls") or ""
        if "true" in (ignored.lower(), ignored_by_profile.lower()):
            return "AWS"
        block = re.findall(r"^\s*endpoint_url\s*=\s*(.+)$", self.services.get("s3", ""), re.M)
        found = _env("AWS_ENDPOINT_URL_S3") or _env("AWS_ENDPOINT_URL")
        found = found or (block[0] if block else self.find("endpoint_url"))
        return found or "AWS"
