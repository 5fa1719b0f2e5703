"""The test binary tests/gpu on this machine's GPU: every fixture against what Hugging Face's implementation answered, in every
format, and the memory that it takes. Packages: none.
"""

import re
import subprocess

from told import Section


def main():
    section = Section("tests")
    command = [section.bundle / "bin/gpu-tests", "--test-threads", "1", "--nocapture"]
    # Where the driver is the fake one, the test that would look for it runs nothing again.
    run = subprocess.run(command, capture_output=True, text=True, env=section.environment(), cwd=section.bundle)
    told = run.stdout + run.stderr
    print(told, flush=True)
    found = re.search(r"(\d+) passed; (\d+) failed", told)
    passed, failed = (int(found[1]), int(found[2])) if found else (0, None)
    section.at_least("tests that passed", passed, 20, "tests")
    section.same("tests that failed", failed, 0, "tests")
    section.same("tests that found no GPU and said so", len(re.findall(r"SKIPPED: ", told)), 0, "tests")
    section.end()


main()
