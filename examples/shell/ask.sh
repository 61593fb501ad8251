#!/bin/bash
# Asks a Sonde server each kind of question once, without stubs: buf reads the contract from the server's reflection.
#
#   ask.sh [ADDRESS [golden]]      needs buf, jq, and GNU's base64 and od
set -euo pipefail
address=${1:-localhost:50051}
here=$(dirname "$0")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

prompt='{"text": "The Eiffel Tower is in the city of"}'
paris='{"text": " Paris", "contrastText": " Rome"}'

# ask METHOD REQUEST: prints each message of the answer on a line as it arrives, with zeros and empty lists.
ask() {
    buf curl --protocol grpc --http2-prior-knowledge --emit-defaults --data "$2" \
        "http://$address/sonde.v1.InspectionService/$1" | jq --unbuffered --compact-output .
}

# Prints the float32 values of a tensor's `data`, one per line.
floats() {
    base64 --decode | od --address-radix=n --output-duplicates --format=f4 --width=4
}

# ---------------------------------------------------------------------- requests

causal_trace() { # SAMPLES SEED; in JSON, a 64-bit number is a string
    jq --null-input --argjson prompt "$prompt" --argjson samples "$1" --arg seed "$2" '{
        $prompt, targets: [{text: " Paris"}],
        causalTracing: {subjectText: "The Eiffel Tower", window: 3, gaussian: {$samples, $seed}}}'
}

ablations() { # SITE TOGETHER: sets each head or neuron to zero, at each position or at all positions together
    jq --null-input --argjson prompt "$prompt" --argjson target "$paris" --argjson site "$1" --argjson together "$2" '{
        $prompt, sweep: {edit: {$site, scale: 0}, $together},
        readout: {targets: [$target], position: -1, topK: 3, klDivergence: true}}'
}

wrong() { # a layer and a neuron that the model does not have
    jq --null-input --argjson prompt "$prompt" '{
        $prompt,
        list: {interventions: [{edits: [{site: {component: "COMPONENT_NEURON", layers: [99], units: [-1]}, scale: 0}]}]}}'
}

edits() { # HIDDEN_SIZE: adds a direction; sets one number; adds noise together with a knockout
    # Eighths from -3/8 to 3/8, as the bytes of float32, little-endian.
    local eighths=('\x00\x00\xc0\xbe' '\x00\x00\x80\xbe' '\x00\x00\x00\xbe' '\x00\x00\x00\x00' '\x00\x00\x00\x3e'
        '\x00\x00\x80\x3e' '\x00\x00\xc0\x3e') direction quarter
    direction=$(for ((i = 0; i < $1; i++)); do printf '%b' "${eighths[i % 7]}"; done | base64 --wrap=0)
    quarter=$(printf '\x00\x00\x80\x3e' | base64)
    jq --null-input --argjson size "$1" --arg direction "$direction" --arg quarter "$quarter" '{
        prompt: {tokenIds: {ids: [range(10; 16)]}},
        list: {interventions: [
            {edits: [{
                site: {component: "COMPONENT_RESIDUAL_POST", layers: [0], fromPosition: 0},
                add: {dataType: "DATA_TYPE_FLOAT32", shape: [$size], data: $direction}}]},
            {edits: [{
                site: {component: "COMPONENT_HEAD_OUT", layers: [4], units: [0], positions: [-1]},
                set: {dataType: "DATA_TYPE_FLOAT32", data: $quarter}}]},
            {edits: [
                {site: {component: "COMPONENT_TOKEN_EMBEDDING", positions: [1]},
                 noise: {standardDeviation: 0.5, seed: "0"}},
                {site: {component: "COMPONENT_ATTENTION_SCORES", layers: [1, 2], positions: [-1]},
                 knockout: {keyPositions: [0]}}]}]},
        readout: {
            targets: [{id: 0}, {id: 20, contrastId: 0}],
            activations: [{component: "COMPONENT_NEURON", layers: [7], positions: [-1]}]}}'
}

# ---------------------------------------------------------------------- the tour

show_model() {
    ask GetModel '{}' | jq --raw-output '.stacks[0] as $decoder |
        "\(.provenance.model): \($decoder.layers) layers of \($decoder.heads) heads and \($decoder.neurons) neurons, " +
        "\(.parameters) parameters"'
}

# Runs a causal trace and shows its progress.
show_trace() {
    local message component places data target clean corrupted position layer probability
    ask Trace "$(causal_trace 20 1)" | while read -r message; do
        jq --raw-output '.progress | "trace: \(.done) of \(.total)"' <<<"$message"
        printf '%s\n' "$message" >>"$scratch/trace"
    done
    {
        jq --raw-output 'select(.context).context | .targets[0].text, (.clean.logProbabilities[0] | exp)' "$scratch/trace"
        jq --raw-output 'select(.corruption).corruption.probabilities[0]' "$scratch/trace"
    } | {
        IFS= read -r target
        read -r clean
        read -r corrupted
        printf '"%s": %.3f clean, %.3f corrupted\n' "$target" "$clean" "$corrupted"
    }
    # COMPONENT POSITION,LAYER... DATA, with one value for each place.
    jq --raw-output '.grids[]? | [
        (.component | ltrimstr("COMPONENT_")), ([.positions[] as $p | .layers[] as $l | "\($p),\($l)"] | join(" ")),
        .probabilities.data] | @tsv' "$scratch/trace" |
        while IFS=$'\t' read -r component places data; do
            paste <(tr ' ' '\n' <<<"$places") <(floats <<<"$data") | sed "s/^/$component /"
        done | awk '$3 > best[$1] { best[$1] = $3; place[$1] = $2 } END { for (c in best) print c, place[c], best[c] }' |
        while IFS=' ,' read -r component position layer probability; do
            printf '  %.3f with %s restored at layer %d, "%s"\n' "$probability" "$component" "$layer" \
                "$(text_of "$position" "$scratch/trace")"
        done
}

text_of() { # POSITION FILE
    jq --raw-output --argjson position "$1" 'select(.context).context.tokens[$position].text' "$2"
}

# Ablates every neuron of a layer at every position, and shows partial results after each message.
show_sweep() {
    local message arrived run least unit layer position
    : >"$scratch/runs"
    ask Intervene "$(ablations '{"component": "COMPONENT_NEURON", "layers": [3]}' '[]')" | while read -r message; do
        [ -s "$scratch/context" ] || printf '%s\n' "$message" >"$scratch/context"
        jq --exit-status .readings >/dev/null <<<"$message" || continue
        jq --raw-output .readings.logProbabilities.data <<<"$message" | floats |
            awk -v first="$(jq .readings.offset <<<"$message")" '{ print first + NR - 1, $1 }' >>"$scratch/runs"
        arrived=$(wc -l <"$scratch/runs")
        read -r run least < <(sort --key=2g "$scratch/runs" | head --lines=1)
        # The last axis varies fastest.
        IFS=$'\t' read -r unit layer position < <(jq --raw-output --argjson run "$run" '.context.axes | [
            .units[$run / (.positions | length) % (.units | length) | floor],
            .layers[$run / (.positions | length) / (.units | length) | floor],
            .positions[$run % (.positions | length)]] | @tsv' "$scratch/context")
        printf 'sweep: %d of %d runs; the least so far is %.3f without neuron %d of layer %d at "%s"\n' "$arrived" \
            "$(jq --raw-output .context.cost.runs "$scratch/context")" "$(awk "BEGIN { print exp($least) }")" \
            "$unit" "$layer" "$(text_of "$position" "$scratch/context")"
    done
}

# Sends a request that the server refuses. The details of the error say what is wrong.
show_refusal() {
    refusal >"$scratch/refusal"
    jq --raw-output '"refused: \(.code) (\(.reason))", (.violations[] | "  \(.field): \(.description)")' "$scratch/refusal"
}

# Prints {code, reason, violations}. buf returns the details as base64 without padding.
refusal() {
    local error
    error=$(ask Intervene "$(wrong)" 2>&1 >/dev/null) || true
    decode() { # TYPE
        jq --raw-output --arg type "$1" '.details[] | select(.type == $type).value | . + "=="[:(4 - length % 4) % 4]' \
            <<<"$error" | base64 --decode
    }
    jq --compact-output --arg reason "$(decode google.rpc.ErrorInfo | grep --text --only-matching '[A-Z_]*' | head -n 1)" \
        --argjson bad "$(decode google.rpc.BadRequest |
            buf convert "$here/bad_request.proto" --type google.rpc.BadRequest --from -#format=binpb --to -#format=json)" \
        '{code, $reason, violations: $bad.fieldViolations}' <<<"$error"
}

# Cancels a long sweep after its first runs. The server stops computing.
show_cancel() {
    local reached call
    mkfifo "$scratch/answer"
    buf curl --protocol grpc --http2-prior-knowledge --emit-defaults \
        --data "$(ablations '{"component": "COMPONENT_NEURON"}' '[]')" \
        "http://$address/sonde.v1.InspectionService/Intervene" >"$scratch/answer" 2>"$scratch/error" &
    call=$!
    exec 3<"$scratch/answer"
    read -r reached < <(jq --unbuffered --compact-output '.progress | select(.done > 0)' <&3)
    exec 3<&-
    kill -INT "$call"
    wait "$call" || true
    jq --raw-output --slurpfile error "$scratch/error" \
        '"cancelled: \($error[0].code) after \(.done) of \(.total) runs"' <<<"$reached"
}

# ---------------------------------------------------------------------- golden

# Prints requests and answers as JSON, for the tests that compare all languages.
golden() {
    local name method request
    ask GetModel '{}' >"$scratch/model"
    while IFS=$'\t' read -r name method request; do
        printf '%s.request %s\n' "$name" "$request"
        ask "$method" "$request" | sed "s/^/$name.message /"
    done < <(
        printf 'model\tGetModel\t{}\n'
        printf 'causal_trace\tTrace\t%s\n' "$(causal_trace 4 4294967295 | jq -c .)"
        printf 'sweep\tIntervene\t%s\n' "$(ablations '{"component": "COMPONENT_HEAD_OUT"}' '["AXIS_POSITION"]' | jq -c .)"
        printf 'edits\tIntervene\t%s\n' "$(edits "$(jq '.stacks[0].hiddenSize' "$scratch/model")" | jq -c .)"
    )
    printf 'refused.request %s\n' "$(wrong | jq -c .)"
    printf 'refused.refusal %s\n' "$(refusal)"
}

if [ "${2:-}" = golden ]; then
    golden
else
    show_model
    show_trace
    show_sweep
    show_refusal
    show_cancel
fi
