"""``fastvae evaluate``."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

from fastvae.cli.codes import OK
from fastvae.cli.runs import load_run, open_run_data


def run(options: Namespace) -> int:
    """Print the bound on data, and log p(x) if it is asked for."""
    result = load_run(options)
    data = open_run_data(options, result)
    values = result.evaluate(data, num_samples=options.num_samples, seed=options.seed)
    if options.json:
        print(json.dumps(values))
        return OK
    print(f"{data.name}: {values['samples']} samples", file=sys.stderr)
    print(f"ELBO   {values['elbo']:10.3f} nats per sample")
    print(f"recon  {values['recon']:10.3f}")
    print(f"KL     {values['kl']:10.3f}")
    if options.num_samples:
        print(f"log p  {values['log_likelihood']:10.3f} with {options.num_samples} samples of the codes")
    print(f"active {values['active_units']:6.0f} of {result.latent_dim} codes")
    return OK
