"""Fit a calibration: smallr calibrate EVALUATION [--method=temperature|isotonic] [--out=FILE]

EVALUATION is a folder of `smallr evaluate` with confidences, on a split that is not used for anything else. The result
is calibration.json, in the evaluation's folder and, if the model is a folder, in the model's, where smallr evaluate,
generate and serve find it.

  smallr evaluate gsm8k --config.model=RUN --config.split=train[:500] --config.confidence.measure=answer --out=fit
  smallr calibrate fit --method=isotonic
  smallr evaluate gsm8k --config.model=RUN --config.confidence.measure=answer --out=test
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from smallr.cli.parsing import Parser


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.argument("evaluation", "folder of an evaluation with confidences")
    parser.flag("method", "temperature", "one number, or a rising curve", choices=("temperature", "isotonic"))
    parser.flag("out", None, "file to write instead")


def run(options: Namespace) -> None:
    """Fits and saves the calibration."""
    from smallr.evals.trust.fitting import HOTTEST, fit, places

    folder = Path(options.evaluation)
    calibration = fit(folder, options.method)
    fitted = calibration.fitted_on
    what = (
        f"{fitted['answers']} answers to {fitted['questions']} questions of {fitted['data']} {fitted['split']}".strip()
    )
    print(f"{options.method} for the measure {calibration.measure}, fitted on {what}")
    if options.method == "temperature":
        temperature = calibration.parameters["temperature"]
        print(f"temperature {temperature:.4f} (above 1: the model was too sure)")
        if temperature > 0.99 * HOTTEST:
            print("this is the end of its range: the confidence says nothing here, or needs --method=isotonic")
    else:
        print(f"{len(calibration.parameters['confidence'])} points")
    for path in places(folder, fitted["model"], options.out or ""):
        calibration.save(path)
        print(f"in {path}")
