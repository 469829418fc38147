"""The image plane: bytes, gain, encoding, quality, delay, and what the detectors learn."""

from __future__ import annotations

from fogline.deploy.grafana.panels import (
    GREEN,
    IMAGES_S,
    RED,
    YELLOW,
    Dashboard,
    Row,
    Variable,
    figure,
    heatmap,
    lines,
    states,
)

EDGE = 'job="fogline-edge", instance=~"$edge"'
FOG = 'job="fogline-fog", instance=~"$fog"'
LEARNS = f"and on (job, instance) (fogline_train_step{{{EDGE}}} > 0)"
QUANTILES = (("50 %", 0.5), ("95 %", 0.95), ("99 %", 0.99))

IMAGE_PLANE = Dashboard(
    uid="fogline-image-plane",
    title="Fogline: image plane",
    description="From capture over the fog node to the receivers. Gain, alpha and beta are of the whole deployment.",
    variables=(
        Variable("fog", "Fog node", 'label_values(fogline_build_info{tier="fog"}, instance)'),
        Variable("edge", "Edge", 'label_values(fogline_build_info{tier="edge"}, instance)'),
    ),
    rows=(
        Row(
            "Now",
            (
                figure(
                    "Gain against sources",
                    "How many times more bytes devices would send each other as captured: over the last five minutes, "
                    "headers and control included.",
                    "fogline:gain_vs_source:ratio5m",
                    unit="none",
                    decimals=2,
                    steps=((RED, None), (GREEN, 1)),
                ),
                figure(
                    "Gain against resized",
                    "The same against JPEGs that were first resized to the coded size at quality 75: what is left of "
                    "the gain without resizing.",
                    "fogline:gain_vs_resized:ratio5m",
                    unit="none",
                    decimals=2,
                    steps=((YELLOW, None), (GREEN, 1)),
                ),
                figure(
                    "Alpha",
                    "Bytes that a receiver is sent of an image, over those of the image as captured.",
                    "fogline:alpha:ratio5m",
                    unit="percentunit",
                    decimals=2,
                ),
                figure(
                    "Beta",
                    "Bytes that go up for an image, over those of the image as captured; about 1 where those go up.",
                    "fogline:beta:ratio5m",
                    unit="percentunit",
                    decimals=1,
                ),
                figure(
                    "Delay, 95 %",
                    "Nineteen of twenty images are usable at a receiver within this time of their capture.",
                    "fogline:delay_seconds:p95_5m",
                    unit="s",
                    steps=((GREEN, None), (YELLOW, 60), (RED, 120)),
                ),
                figure(
                    "Object quality",
                    "Mean PSNR inside the boxes, as the fog node measures it on one image of each batch.",
                    'fogline:quality_db:mean5m{area="object"}',
                    unit="dB",
                    decimals=1,
                    steps=((RED, None), (YELLOW, 25), (GREEN, 30)),
                ),
            ),
        ),
        Row(
            "Bytes",
            (
                lines(
                    "Bytes by link and kind",
                    "Each byte once. image: uploads; record and shared_state: downloads; control: the rest.",
                    ('sum by (link, kind) (fogline:link_bytes:rate5m{kind!="tensor"})', "{{link}} {{kind}}"),
                    unit="Bps",
                    stack=True,
                ),
                lines(
                    "Published by codec",
                    "Bytes of the records that fog nodes publish, by codec and by what of a record.",
                    (
                        f"sum by (codec, layer) (rate(fogline_record_bytes_total{{{FOG}}}[$__rate_interval]))",
                        "{{codec}} {{layer}}",
                    ),
                    unit="Bps",
                    stack=True,
                ),
                lines(
                    "Received by codec",
                    "Bytes of the records that edges received, by codec and by what of a record.",
                    (
                        f"sum by (codec, layer) (rate(fogline_received_bytes_total{{{EDGE}}}[$__rate_interval]))",
                        "{{codec}} {{layer}}",
                    ),
                    unit="Bps",
                    stack=True,
                ),
                lines(
                    "Gain",
                    "Bytes that devices would send each other, over those that are sent. Below 1 the fog node costs "
                    "more than it saves.",
                    ("fogline:gain_vs_source:ratio5m", "against sources {{cluster}}"),
                    ("fogline:gain_vs_resized:ratio5m", "against resized {{cluster}}"),
                    unit="none",
                    limit=1,
                    at_least=True,
                ),
                lines(
                    "Alpha and beta",
                    "Down and up for an image, over its size as captured. With n receivers the gain is n / (beta + "
                    "alpha n), less control.",
                    ("fogline:alpha:ratio5m", "alpha {{cluster}}"),
                    ("fogline:beta:ratio5m", "beta {{cluster}}"),
                    unit="percentunit",
                ),
                lines(
                    "Uploads by form",
                    "What fog nodes take in, by what was sent of an image.",
                    (f"sum by (form) (rate(fogline_taken_bytes_total{{{FOG}}}[$__rate_interval]))", "{{form}}"),
                    unit="Bps",
                    stack=True,
                ),
            ),
        ),
        Row(
            "Flow",
            (
                lines(
                    "Images",
                    "Images a second through each stage. Received counts every receiver.",
                    (f"sum(rate(fogline_captured_images_total{{{EDGE}}}[$__rate_interval]))", "captured"),
                    (f"sum(rate(fogline_taken_images_total{{{FOG}}}[$__rate_interval]))", "taken in"),
                    (f"sum(rate(fogline_encoded_images_total{{{FOG}}}[$__rate_interval]))", "published"),
                    (f"sum(rate(fogline_received_images_total{{{EDGE}}}[$__rate_interval]))", "received"),
                    unit=IMAGES_S,
                ),
                lines(
                    "Uploads by outcome",
                    "How images leave the outboxes. Dropped ones are lost; rejected ones are no valid images.",
                    (
                        f"sum by (outcome) (rate(fogline_uploaded_images_total{{{EDGE}}}[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                    unit=IMAGES_S,
                ),
                lines(
                    "Outboxes",
                    "Images that wait for upload. They grow while a fog node is away, and empty afterwards.",
                    (f"fogline_outbox_images{{{EDGE}}}", "{{instance}}"),
                    unit="none",
                ),
                lines(
                    "Delay from capture to usable",
                    "By the fog node's clock, so a wrong clock on a camera does no harm.",
                    *(
                        (
                            f"histogram_quantile({q}, sum by (le) "
                            f"(rate(fogline_delay_seconds_bucket{{{EDGE}}}[$__rate_interval])))",
                            name,
                        )
                        for name, q in QUANTILES
                    ),
                    unit="s",
                    limit=120,
                ),
                heatmap(
                    "Delay, all of it",
                    "How many images took how long: two bands are two kinds of images, such as those of a camera with "
                    "a slow link.",
                    f"sum by (le) (increase(fogline_delay_seconds_bucket{{{EDGE}}}[$__rate_interval]))",
                    unit="s",
                ),
                lines(
                    "Receivers behind",
                    "Records that an edge knows of and does not hold yet.",
                    (f"fogline_behind_records{{{EDGE}}}", "{{instance}}"),
                    unit="none",
                ),
            ),
        ),
        Row(
            "Encoding",
            (
                lines(
                    "Encode queue",
                    "Images that wait to be encoded.",
                    (f"fogline_encode_queue_images{{{FOG}}}", "{{instance}}"),
                    unit="none",
                ),
                lines(
                    "Age of the queue",
                    "For how long the oldest image that is not published has been here. It rises steadily when "
                    "encoding stands still.",
                    (f"fogline_encode_queue_age_seconds{{{FOG}}}", "{{instance}}"),
                    unit="s",
                    limit=300,
                ),
                lines(
                    "Encoding time",
                    "Seconds that the encoder works on an image, and how much of its time it works.",
                    (
                        f"sum by (instance) (rate(fogline_encode_seconds_total{{{FOG}}}[$__rate_interval])) / "
                        f"sum by (instance) (rate(fogline_encoded_images_total{{{FOG}}}[$__rate_interval]))",
                        "{{instance}} an image",
                    ),
                    (
                        f"sum by (instance) (rate(fogline_encode_seconds_total{{{FOG}}}[$__rate_interval]))",
                        "{{instance}} of each second",
                    ),
                    unit="s",
                ),
                lines(
                    "Quality",
                    "Mean PSNR against what was uploaded, at the coded size, of one image of each batch: inside the "
                    "boxes, outside of them, and of the frame.",
                    ("fogline:quality_db:mean5m", "{{area}} {{cluster}}"),
                    unit="dB",
                    limits=(None, None),
                ),
                lines(
                    "Quality of the worst",
                    "One image of ten is below this.",
                    (
                        "histogram_quantile(0.1, sum by (le, area) "
                        f"(rate(fogline_quality_db_bucket{{{FOG}}}[$__rate_interval])))",
                        "{{area}}",
                    ),
                    unit="dB",
                    limits=(None, None),
                ),
                lines(
                    "Subscribers",
                    "Edges that wait for news of a fog node.",
                    (f"fogline_subscribers{{{FOG}}}", "{{instance}}"),
                    unit="none",
                ),
                lines(
                    "Store",
                    "Bytes of all blobs that fog nodes hold. Records are never deleted.",
                    (f"fogline_store_bytes{{{FOG}}}", "{{instance}}"),
                    unit="bytes",
                ),
                lines(
                    "Set aside, and encoders that died",
                    "Images that can't be encoded; encoder processes that ended unasked within an hour.",
                    (f"fogline_set_aside_images{{{FOG}}}", "{{instance}} set aside"),
                    (f"increase(fogline_encoder_restarts_total{{{FOG}}}[1h])", "{{instance}} restarts"),
                    unit="none",
                    limit=1,
                ),
                lines(
                    "Libraries",
                    "Bytes of records that edges hold to learn from.",
                    (f"fogline_library_bytes{{{EDGE}}}", "{{instance}}"),
                    unit="bytes",
                ),
            ),
        ),
        Row(
            "On the edges",
            (
                lines(
                    "Making uplink forms",
                    "Cores that edges spend on smaller forms of their images; 0 where JPEGs go up as captured.",
                    (f"rate(fogline_transcode_seconds_total{{{EDGE}}}[$__rate_interval])", "{{instance}}"),
                    unit="none",
                ),
                states(
                    "Capture",
                    "Whether capture waits for room in the outbox or on the disk.",
                    f"fogline_capture_waiting{{{EDGE}}}",
                    "{{instance}}",
                    (("captures", GREEN), ("waits", RED)),
                ),
                lines(
                    "Training steps",
                    "Steps a second of each edge's detector.",
                    (f"deriv(fogline_train_step{{{EDGE}}}[$__rate_interval]) {LEARNS}", "{{instance}}"),
                    unit="none",
                    limits=(None, None),
                ),
                lines(
                    "Detector loss",
                    "Running mean of the training loss of edges that train.",
                    (f"fogline_train_loss{{{EDGE}}} {LEARNS}", "{{instance}}"),
                    unit="none",
                    width=12,
                ),
                lines(
                    "Detector IoU",
                    "Mean IoU (or AP50, where train.metric says so) on the evaluation frames of edges that train.",
                    (f"fogline_train_iou{{{EDGE}}} {LEARNS}", "{{instance}}"),
                    unit="none",
                    width=12,
                    limits=(0, 1),
                ),
            ),
        ),
    ),
)
