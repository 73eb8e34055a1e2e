"""Chat templates with generation markers around what is supervised: the answer and the token that ends it.

Each family's first template is the one that tiny models are built with. A family has several where its released models
differ; a model's own template decides which is taken, see `backbones.training_template`.
"""

from trl.chat_template_utils import qwen2_5_vl_training_chat_template, qwen3_vl_training_chat_template

_IMAGES = "{%- for part in message['content'] if part['type'] == 'image' -%}"
_QUESTION = "{%- for part in message['content'] if part['type'] == 'text' -%}"
_ANSWER = (
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endif -%}"
)

# `USER: ... ASSISTANT:` of LLaVA-1.5 and of LLaVA-NeXT on Vicuna. The released template leaves out the stop token
# behind an answer: without it a tuned model never stops.
VICUNA = (
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
    "{{- 'USER: ' -}}" + _IMAGES + "{{- '<image>\n' -}}{%- endfor -%}"
    "" + _QUESTION + "{{- part['text'] + ' ' -}}{%- endfor -%}"
    "{%- else -%}{{- 'ASSISTANT:' -}}{%- generation -%}{{- ' ' -}}"
    + _ANSWER
    + "{{- eos_token -}}{%- endgeneration -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)

# `[INST] ... [/INST]` of LLaVA-NeXT on Mistral.
MISTRAL = (
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
    "{{- '[INST] ' -}}" + _IMAGES + "{{- '<image>\n' -}}{%- endfor -%}"
    "" + _QUESTION + "{{- part['text'] -}}{%- endfor -%}{{- ' [/INST]' -}}"
    "{%- else -%}{%- generation -%}{{- ' ' -}}" + _ANSWER + "{{- eos_token -}}{%- endgeneration -%}{{- ' ' -}}"
    "{%- endif -%}{%- endfor -%}"
)


def _chatml(begin: str, image: str, before_text: str, end: str) -> str:
    """LLaVA-OneVision's chat; its released models differ in line breaks.

    Args:
        begin: What stands between the role and what is said.
        image: One image.
        before_text: What stands before a question's text.
        end: What stands between one message and the next.
    """
    return (
        "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] -}}{%- if message['role'] == 'user' -%}"
        "{{- '" + begin + "' -}}" + _IMAGES + "{{- '" + image + "' -}}{%- endfor -%}"
        "" + _QUESTION + "{{- '" + before_text + "' + part['text'] -}}{%- endfor -%}{{- '<|im_end|>" + end + "' -}}"
        "{%- else -%}{{- '\n' -}}{%- generation -%}" + _ANSWER + "{{- '<|im_end|>" + end + "' -}}{%- endgeneration -%}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    )


QWEN2_VL = QWEN2_5_VL = (qwen2_5_vl_training_chat_template,)
QWEN3_VL = (qwen3_vl_training_chat_template,)
LLAVA = (VICUNA,)
LLAVA_NEXT = (MISTRAL, VICUNA)
LLAVA_ONEVISION = (_chatml(" ", "<image>", "\n", ""), _chatml("\n", "<image>\n", "", "\n"))
