//! The reflection protocol: v1, with v1alpha as a fallback. Both have the same messages.

use http::uri::PathAndQuery;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap, transport::Channel};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

use crate::{client::Client, error::Error, options::CallOptions};

const PATHS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// One reflection request.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Services,
    /// The file that defines a symbol.
    Symbol(String),
    /// A file by its name.
    File(String),
}

/// One reflection response.
pub(crate) enum Reply {
    Services(Vec<String>),
    Files(Vec<Vec<u8>>),
    /// The name is unknown.
    Nothing,
}

impl Client {
    /// Sends some requests to one node on one stream. The responses have the order of the requests.
    pub(crate) async fn reflect(&self, asks: &[Ask]) -> Result<Vec<Reply>, Error> {
        let options = CallOptions::read();
        let mut last = None;
        for path in PATHS {
            let answer = self
                .run(&options, |channel, metadata| {
                    exchange(channel, metadata, PathAndQuery::from_static(path), asks)
                })
                .await;
            match answer {
                Ok(replies) => return Ok(replies.into_inner()),
                Err(error) if error.code() == Code::Unimplemented => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Code::Unimplemented, "no reflection")))
    }
}

async fn exchange(
    channel: Channel,
    metadata: MetadataMap,
    path: PathAndQuery,
    asks: &[Ask],
) -> Result<Response<Vec<Reply>>, Status> {
    let questions: Vec<_> = asks.iter().map(question).collect();
    let mut request = Request::new(tokio_stream::iter(questions));
    *request.metadata_mut() = metadata;
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(16 << 20);
    grpc.ready().await.map_err(|cause| Status::from_error(cause.into()))?;
    let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
    let (metadata, mut stream, extensions) =
        grpc.streaming(request, path, codec).await?.into_parts();
    let mut replies = Vec::new();
    while let Some(response) = stream.message().await? {
        replies.push(reply(response)?);
        if replies.len() == asks.len() {
            break;
        }
    }
    Ok(Response::from_parts(metadata, replies, extensions))
}

fn question(ask: &Ask) -> ServerReflectionRequest {
    let request = match ask {
        Ask::Services => MessageRequest::ListServices(String::new()),
        Ask::Symbol(name) => MessageRequest::FileContainingSymbol(name.clone()),
        Ask::File(name) => MessageRequest::FileByFilename(name.clone()),
    };
    ServerReflectionRequest { host: String::new(), message_request: Some(request) }
}

fn reply(response: ServerReflectionResponse) -> Result<Reply, Status> {
    match response.message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            Ok(Reply::Services(list.service.into_iter().map(|service| service.name).collect()))
        }
        Some(MessageResponse::FileDescriptorResponse(files)) => {
            Ok(Reply::Files(files.file_descriptor_proto))
        }
        Some(MessageResponse::ErrorResponse(error))
            if error.error_code == Code::NotFound as i32 =>
        {
            Ok(Reply::Nothing)
        }
        Some(MessageResponse::ErrorResponse(error)) => {
            Err(Status::new(Code::from_i32(error.error_code), error.error_message))
        }
        _ => Err(Status::internal("reflection returned a response of another kind")),
    }
}
