"""The test binaries tests/gpu and tests/decoders_on_a_gpu on this machine's GPU: every fixture against what Hugging Face's
implementation answered, in every format, and the memory that it takes. Packages: none.
"""

import re
import subprocess

from told import Section


def run(section, binary, of):
    command = [section.bundle / "bin" / binary, "--test-threads", "1", "--nocapture"]
    # Where the driver is the fake one, the test that would look for it runs nothing again.
    run = subprocess.run(command, capture_output=True, text=True, env=section.environment(), cwd=section.bundle)
    told = run.stdout + run.stderr
    print(told, flush=True)
    found = re.search(r"(\d+) passed; (\d+) failed", told)
    passed, failed = (int(found[1]), int(found[2])) if found else (0, None)
    section.at_least(f"tests of {of} that passed", passed, 5, "tests")
    section.same(f"tests of {of} that failed", failed, 0, "tests")
    section.same(f"tests of {of} that found no GPU and said so", len(re.findall(r"SKIPPED: ", told)), 0, "tests")


def main():
    section = Section("tests")
    run(section, "gpu-tests", "encoders")
    run(section, "gpu-decoder-tests", "decoders")
    section.end()


main()
