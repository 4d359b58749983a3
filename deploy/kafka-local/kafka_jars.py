"""What a Kafka without Docker is made of: the Java on this machine, and the jars that Maven fetches once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

POM = Path(__file__).resolve().with_name("pom.xml")
JAVA_NEEDED = 17


class KafkaLocalError(RuntimeError):
    """What is missing on this machine, or which node failed with which words. The text is for people."""


def kafka_version() -> str:
    """The release that `pom.xml` pins."""
    found = re.search(r"<kafka\.version>([^<]+)<", POM.read_text(encoding="utf-8"))
    assert found is not None, "pom.xml names no version"
    return found.group(1)


def java_version() -> str:
    """The version of the `java` on PATH, such as `17.0.15`; KafkaLocalError where it is missing or too old."""
    wanted = f"a local Kafka needs Java {JAVA_NEEDED} or newer (on Debian and Ubuntu: apt-get install openjdk-17-jre-headless)"
    java = shutil.which("java")
    if java is None:
        raise KafkaLocalError(f"{wanted}; no `java` is on PATH")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "((\d+)[^"]*)"', said)
    if found is None:
        raise KafkaLocalError(f"{wanted}; `java -version` said {said.strip()[:200]!r}")
    if int(found.group(2)) < JAVA_NEEDED:
        raise KafkaLocalError(f"{wanted}; `java` on PATH is {found.group(1)}")
    return found.group(1)


def default_cache() -> Path:
    """Where jars are kept: outside the repository, one folder for each release of Kafka."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "agentlightning" / f"kafka-{kafka_version()}"


def fetch_jars(cache: Path) -> Path:
    """The folder with the jars, filled by Maven if it is not there. Any number of processes may call it at once.

    Raises KafkaLocalError where Maven is missing or fails.
    """
    jars = cache / "jars"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaLocalError(
            "the first start of a local Kafka needs Maven to fetch its jars (on Debian and Ubuntu: apt-get install maven); "
            f"no `mvn` is on PATH and {jars} is not there"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={scratch}/jars"]
        command = [maven, "--quiet", "--batch-mode", "--file", str(POM), *goal]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if run.returncode:
            raise KafkaLocalError(f"Maven could not fetch Kafka {kafka_version()}:\n{run.stdout.strip()[-2000:]}")
        try:
            os.rename(f"{scratch}/jars", jars)
        except OSError:
            if not jars.is_dir():
                raise
    return jars
