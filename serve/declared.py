"""Traffic rules in a file, so that any number of replicas have the same ones: `zoo serve --rules FILE`.

The file is JSON, such as `{"digits": {"pin": "1", "canary": {"version": "2", "weight": 0.1}}}`. It is read again when
it changes. A model that it names is ruled by it alone; all others are the operator's, as ever.
"""

from pathlib import Path

import msgspec

from serve.rules import Canary, Plan, Shadow
from serve.watch import Watch


class Share(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A version and its share of the requests, in (0, 1]."""

    version: str
    share: float = 1.0


class Weight(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A version and the weight, in (0, 1], with which it is drawn."""

    version: str
    weight: float


class Declared(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """What the file may say of one model; what each of them does is told in docs/traffic.md.

    A rule about a version that is not served waits until it is.
    """

    pin: str | None = None
    canary: Weight | None = None
    shadow: Share | None = None
    watch: Watch = Watch()

    def check(self) -> None:
        """Compare the parts with what they may be, and with each other.

        Raises:
            ValueError: one is out of range, or two contradict each other.
        """
        for what, value in (
            ("canary.weight", self.canary.weight if self.canary else 1.0),
            ("shadow.share", self.shadow.share if self.shadow else 1.0),
        ):
            if not 0 < value <= 1:
                raise ValueError(f"{what} must lie above 0 and be at most 1, got {value}; 0.1 is a tenth")
        if self.canary is not None and self.pin is None:  # or it would be the latest, and so answer all, once it ends
            raise ValueError("a canary needs a pin, the version that answers the other requests")
        if self.canary is not None and self.canary.version == self.pin:
            raise ValueError(f"version {self.pin!r} is the pin and the canary; name another canary, or none")
        self.watch.check()

    def apply(self, plan: Plan, now: float) -> None:
        """Make a plan say this, and no more; a canary or a shadow that it has already keeps its time.

        Args:
            plan: is changed.
            now: seconds since 1970, when another canary or shadow begins.
        """
        if self.canary is None:
            plan.canary = None
        elif plan.canary is None or plan.canary.version != self.canary.version:
            plan.canary = Canary(self.canary.version, self.canary.weight, now)
        else:
            plan.canary.weight = self.canary.weight
        if self.shadow is None:
            plan.shadow = None
        elif plan.shadow is None or plan.shadow.version != self.shadow.version:
            plan.shadow = Shadow(self.shadow.version, self.shadow.share, now)
        else:
            plan.shadow.share = self.shadow.share
        plan.pin, plan.watch, plan.fresh, plan.held = self.pin, self.watch, None, {}


def load(path: Path) -> dict[str, Declared]:
    """Read the file: rules by model.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read or says what cannot be; the message names the model.
    """
    content = path.read_bytes()
    try:
        texts = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f'{path} must hold a JSON object of rules by model, such as {{"digits": {{"pin": "1"}}}}: {error}'
        ) from error
    found = {}
    for name, text in texts.items():
        try:
            rules = msgspec.json.decode(text, type=Declared)
            rules.check()
        except (ValueError, UnicodeDecodeError) as error:
            fields = ", ".join(Declared.__struct_fields__)
            raise ValueError(
                f"{path}: the rules of {name!r:.80} cannot be used: {error}; they may have {fields}"
            ) from error
        found[name] = rules
    return found
