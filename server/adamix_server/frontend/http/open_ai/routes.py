"""The routes of this face, for `app.py` to collect."""

from tokenizers import Tokenizer

from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.open_ai import generating, inputs
from adamix_server.frontend.http.open_ai.answer_room import AnswerRoom
from adamix_server.frontend.http.open_ai.bodies import ChatBody, CompletionBody, EmbeddingBody, InputBody
from adamix_server.frontend.http.open_ai.errors import to_reply
from adamix_server.frontend.http.open_ai.listing import Listing
from adamix_server.frontend.http.open_ai.models import Models
from adamix_server.frontend.http.open_ai.token_texts import TokenTexts
from adamix_server.frontend.http.route import Route

_TAG = "openai"


def routes(calls: Calls, view: CatalogView, tokenizer: Tokenizer) -> list[Route]:
    """All of them.

    Args:
        view: where models are found.
        tokenizer: the backbone's.
    """
    models, tokens, room = Models(view), TokenTexts(tokenizer), AnswerRoom()
    listing = Listing(calls, models)
    completions = generating.Generating(calls, models, room, generating.completions(tokens))
    chats = generating.Generating(calls, models, room, generating.chats(tokens))
    embeddings = inputs.Predicting(calls, models, room, inputs.embeddings(models))
    classes = inputs.Predicting(calls, models, room, inputs.classes(models))
    return [
        Route("GET", "/v1/models", listing.all, to_reply, "The caller's tasks, as models.", _TAG),
        Route("GET", "/v1/models/{model}", listing.one, to_reply, "One of them.", _TAG),
        Route("POST", "/v1/completions", completions, to_reply, "Goes on after a text.", _TAG, CompletionBody),
        Route("POST", "/v1/chat/completions", chats, to_reply, "Answers a chat.", _TAG, ChatBody),
        Route("POST", "/v1/embeddings", embeddings, to_reply, "Embeddings of texts.", _TAG, EmbeddingBody),
        Route("POST", "/classify", classes, to_reply, "Classes of texts, in vLLM's shape.", _TAG, InputBody),
    ]
