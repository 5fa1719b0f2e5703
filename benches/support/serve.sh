# Sourced by benches/swap, benches/swap-chat and benches/soak, with $model set: serves a copy of it until the script ends, and
# sets $cutover (the program), $url, $server (its process), $versions (two, to switch between) and $realtime (an option, or
# nothing).
#
# digits: v2 against a copy of v2 in which every weight is a little different, so that both versions cost the same and
# none of their tensors is shared. minilm: f32 against f16. smollm2: Q4_1 against f16. The load generator's threads have
# real-time priority where that is allowed, because it shares the machine with the server.
case $model in
  digits) versions=v2,v2b ;;
  minilm) versions=f32,f16 ;;
  smollm2) versions=q4_1,f16 ;;
  *) echo "$0: expected digits, minilm or smollm2" >&2; exit 2 ;;
esac
cutover=${CARGO_TARGET_DIR:-target}/release/cutover
work=$(mktemp -d)
finish() { kill "${server:-0}" 2>/dev/null || true; rm -rf "$work"; }
trap finish EXIT

mkdir -p "$work/models"
cp -r "models/$model" "$work/models/"
if [ "$model" = digits ]; then
  cp -r "$work/models/digits/v2" "$work/models/digits/v2b"
  rm "$work/models/digits/v2b/golden.jsonl"
  sed -i 's/^live = .*/live = "v2"/' "$work/models/digits/model.toml"
  python3 - "$work/models/digits/v2b/model.safetensors" <<'PY'
import array, struct, sys
path = sys.argv[1]
data = open(path, "rb").read()
start = 8 + struct.unpack("<Q", data[:8])[0]
weights = array.array("f", data[start:])
for at in range(len(weights)):
    weights[at] *= 1.000001
    if weights[at] == 0.0:
        weights[at] = 1e-30
open(path, "wb").write(data[:start] + weights.tobytes())
PY
fi

"$cutover" serve --model "$model" --models "$work/models" --state "$work/state" --listen 127.0.0.1:0 >"$work/out" 2>"$work/log" &
server=$!
until url=$(sed -n 's/^Cutover listens on \(http:[^ ]*\).*/\1/p' "$work/out") && [ -n "$url" ]; do
  kill -0 "$server" || { cat "$work/log" >&2; exit 1; }
  sleep 0.1
done
realtime=""
chrt -f 5 true 2>/dev/null && realtime=--realtime
benches/support/machine
