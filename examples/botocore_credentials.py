"""Load from S3 with any credentials that botocore can find: SSO, a login in the browser, MFA.

torchnpy finds keys, roles, web identities, processes and metadata services by itself; for all else
it calls what you give it. botocore does the work here: it reads the profile, renews what expires
(after `aws sso login` for as long as that lasts) and is asked again when S3 says that a token has
expired. DataLoader workers get a copy of the callable and ask for themselves.

Usage:
    python examples/botocore_credentials.py                                   # a local S3 server
    python examples/botocore_credentials.py --profile my-sso --bucket my-bucket
"""

import argparse
import os

import numpy as np
from botocore.session import Session
from store import add_store_options, open_store, parse_args, upload
from torch.utils.data import DataLoader

from torchnpy import Client
from torchnpy.data import NpyDataset

COUNT = 16


class BotocoreCredentials:
    """Of a profile, or of whatever botocore finds first. Pickles as the profile's name."""

    def __init__(self, profile: str | None = None) -> None:
        self.profile = profile
        self._session: Session | None = None

    def __call__(self) -> object:
        if self._session is None:
            self._session = Session(profile=self.profile)
        credentials = self._session.get_credentials()  # botocore keeps them
        if credentials is None:
            raise RuntimeError(f"botocore found no credentials in profile {self.profile}")
        return credentials.get_frozen_credentials()  # renewed where that is due

    def __getstate__(self) -> dict[str, object]:
        return {"profile": self.profile, "_session": None}


def main() -> None:
    parser = argparse.ArgumentParser(description="Load with botocore's credentials.")
    parser.add_argument("--profile", help="of ~/.aws/config")
    add_store_options(parser, "botocore")
    args = parse_args(parser)
    if args.profile:
        os.environ["AWS_PROFILE"] = args.profile  # for the region and the endpoint
    with open_store(args) as (store, folder):
        urls = [f"{folder}/{number}.npy" for number in range(COUNT)]
        client = Client(credentials=BotocoreCredentials(args.profile))
        upload(urls, [np.full((4, 4), number) for number in range(COUNT)], client)
        batches = DataLoader(
            NpyDataset(urls, client=client),
            batch_size=4,
            num_workers=2,
            multiprocessing_context="spawn",
        )
        total = sum(int(batch[:, 0, 0].sum()) for batch in batches)
        assert total == sum(range(COUNT))
        print(f"Loaded {COUNT} arrays from {store} with {client}")


if __name__ == "__main__":
    main()
